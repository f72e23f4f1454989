"""Services of a local platform: Postgres, Airflow, and the AWS emulator."""
