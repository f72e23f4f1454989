"""A deferrable sensor on an endpoint that only the network of its region reaches."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG
from airflow.sdk.bases.sensor import BaseSensorOperator
from private_endpoint_triggers import PortTrigger

from airbridge.core import near

LOST_AFTER = 25.0


class PortSensor(BaseSensorOperator):  # type: ignore[misc] # Airflow publishes no types
    """Waits for the port in the run's conf, without a slot."""

    def execute(self, context: Any) -> None:
        """Defer."""
        conf = context["dag_run"].conf
        self.defer(trigger=PortTrigger(conf["host"], conf["port"]), method_name="resumed")

    def resumed(self, _context: Any, event: Any = None) -> Any:
        """Return the event."""
        return event


with DAG("private_endpoint", schedule=None):
    PortSensor(task_id="port", executor_config=near("region:eu-west-1", lost_after=LOST_AFTER), retries=0)
