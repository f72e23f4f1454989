"""The control plane: gateway, identity, Airflow plugin, the airbridge command line, local mode."""
