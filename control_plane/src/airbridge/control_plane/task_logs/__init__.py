"""Task logs in the control plane: reader, Airflow handler, logging configuration."""
