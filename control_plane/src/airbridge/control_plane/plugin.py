"""AirBridge's Airflow plugin. Airflow finds it by its entry point and instantiates nothing at import."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class AirBridgePlugin(AirflowPlugin):  # type: ignore[misc] # Airflow is untyped here
    """Registers AirBridge with Airflow's processes under one name."""

    name = "airbridge"
