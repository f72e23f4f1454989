"""The agent's own reports are valid for Airflow's Task Execution API."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.core.protocol import TRIGGER_EVENT, DisconnectPolicy, TriggerSpec
from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.work import outcome


@pytest.mark.parametrize(
    ("should_retry", "replace", "interrupted", "state"),
    [
        (True, True, True, "up_for_retry"),
        (True, True, False, "up_for_retry"),
        (True, False, False, "up_for_retry"),
        (True, False, True, "failed"),
        (False, True, True, "failed"),
        (False, True, False, "failed"),
    ],
)
def test_agents_failure_is_valid_state(
    should_retry: bool, replace: bool, interrupted: bool, state: str
) -> None:
    """Airflow's own model accepts the payload; a retry is requested as Airflow would, unless it must never run twice."""
    from airflow.api_fastapi.execution_api.datamodels.taskinstance import TIStateUpdate
    from pydantic import TypeAdapter

    given = grant().model_copy(
        update={"ti_context": {"should_retry": should_retry}, "disconnect": DisconnectPolicy(replace=replace)}
    )
    call = outcome.failure(given, datetime(2025, 1, 1, tzinfo=UTC), interrupted=interrupted)
    payload = TypeAdapter(TIStateUpdate).validate_python(json.loads(call.body or ""))
    assert payload.state.value == state
    assert call.path == f"task-instances/{given.ti_id}/state"


def test_triggers_failure_is_valid_event() -> None:
    """What the agent reports in place of a trigger is an event that the gateway reads; one that reports a failure already stays."""
    from airbridge.control_plane.gateway.triggers import events

    spec = TriggerSpec(trigger_id=7, classpath="mine.Waits")
    given = grant().model_copy(update={"trigger": spec})
    now = datetime(2025, 1, 1, tzinfo=UTC)
    fired = Call(0, "POST", TRIGGER_EVENT, "", '{"event": {"payload": {}}}')
    instead = outcome.failure_instead(fired, given, now)
    assert (instead.method, instead.path) == ("POST", TRIGGER_EVENT)
    assert isinstance(events.read(instead.body), events.Failed)
    assert outcome.failure_instead(instead, given, now) is instead
