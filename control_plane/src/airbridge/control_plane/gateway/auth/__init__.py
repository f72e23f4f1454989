"""Authentication of callers and permissions of tasks."""
