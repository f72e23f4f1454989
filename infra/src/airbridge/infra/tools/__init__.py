"""Commands around the stacks: local deployment, checks, scans."""
