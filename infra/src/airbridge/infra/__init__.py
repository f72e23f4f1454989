"""The platform as code: CDK for Terraform stacks and constructs."""
