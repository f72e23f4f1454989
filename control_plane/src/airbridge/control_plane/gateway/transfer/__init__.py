"""Queues, DAG code and logs of workers that reach nothing but the gateway."""
