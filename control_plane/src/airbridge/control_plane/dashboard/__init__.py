"""The dashboard: pages about regions, workers, work and versions, served by Airflow's api-server at ``/airbridge/``."""
