"""IAM policies of the pipelines and of the control plane in edge regions."""
