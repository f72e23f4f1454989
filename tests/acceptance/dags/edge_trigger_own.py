"""Tasks that are deferred on triggers of their bundle's own."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, BaseOperator
from edge_trigger_classes import FailingTrigger, OwnTrigger

from airbridge.core import near


class Waits(BaseOperator):  # type: ignore[misc] # Airflow publishes no types
    """Waits for a port."""

    def __init__(self, *, seconds: float | None = None, fails: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds
        self.fails = fails

    def execute(self, context: Any) -> None:
        """Defer."""
        conf = context["dag_run"].conf
        trigger = FailingTrigger() if self.fails else OwnTrigger(conf["port"], conf.get("conn_id"))
        timeout = timedelta(seconds=self.seconds) if self.seconds else None
        self.defer(trigger=trigger, method_name="resumed", timeout=timeout)

    def resumed(self, _context: Any, event: Any = None) -> Any:
        """Return the event."""
        return event


PLACE = near("region:us-east-1", lost_after=12)
OPTIONS: dict[str, dict[str, Any]] = {"waits": {}, "fails": {"fails": True}, "times_out": {"seconds": 3.0}}
for name, options in OPTIONS.items():
    with DAG(f"edge_trigger_{name}", schedule=None):
        Waits(task_id="waits", executor_config=PLACE, retries=0, **options)
