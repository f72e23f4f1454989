"""The dag-processor: Airflow's, with DAG files parsed by processes that hold none of its secrets."""
