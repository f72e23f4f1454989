"""Policy of tasks: the rules of `policy.toml`, decisions, and reload of the file."""
