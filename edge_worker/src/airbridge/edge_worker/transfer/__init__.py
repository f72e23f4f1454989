"""Queue, DAG code and logs by way of the gateway, for a worker that reaches nothing else."""
