"""Airflow's side of the queue: EdgeExecutor, placement, ledger, outbox, and the wire protocol."""
