"""DAG code as archives named by the digest of their content."""
