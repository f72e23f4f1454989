"""Storage on the worker: DAG code, disk space, task logs."""
