"""Final state and log line of a task that could not report by itself, written by the agent.

The payloads are those of Airflow's Task Execution API; `tests/contract/test_edge_outcome.py` checks them against its models.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from airbridge.core.protocol import TRIGGER_EVENT, Grant
from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.work.task import Exit


def failure(grant: Grant, at: datetime, *, interrupted: bool) -> Call:
    """Return the call that reports the attempt failed, to be retried if Airflow would.

    `interrupted`: the attempt did not fail, it was ended; work that must never run twice is not retried then.
    """
    if grant.trigger is not None:
        return trigger_failure("the worker could not report the trigger's event")
    # `should_retry` is Airflow's own answer, from the claim.
    retry = bool(grant.ti_context.get("should_retry")) and (grant.disconnect.replace or not interrupted)
    body = {"state": "up_for_retry" if retry else "failed", "end_date": at.isoformat()}
    return Call(id=0, method="PATCH", path=f"task-instances/{grant.ti_id}/state", body=json.dumps(body))


def failure_instead(call: Call, grant: Grant, at: datetime) -> Call:
    """Return the call that reports a failure in place of `call`, or `call` itself if it reports one."""
    reported = json.loads(call.body or "{}")
    if "failure" in reported:
        return call
    state = reported.get("state")
    return call if state in {"failed", "up_for_retry"} else failure(grant, at, interrupted=False)


def trigger_failure(message: str) -> Call:
    """Return the call that reports that a trigger ended without an event, which fails its task."""
    return Call(id=0, method="POST", path=TRIGGER_EVENT, body=json.dumps({"failure": [message]}))


def explain(exited: Exit) -> str:
    """Return why a supervisor that reported no final state ended, for the task's log."""
    if exited.hit is not None:
        return exited.hit.detail
    if exited.signal == 9:
        cause = "was killed (SIGKILL); out of memory?"
    elif exited.signal is not None:
        cause = f"was killed by signal {exited.signal}"
    else:
        cause = f"ended with code {exited.code} before it reported a final state"
    return f"The task's supervisor {cause}" + (f": {exited.detail}" if exited.detail else "")


def append_to_log(log_file: Path, at: datetime, message: str) -> None:
    """Append a line to a task's log in the Task SDK's format."""
    line = {
        "timestamp": at.isoformat(),
        "level": "error",
        "event": message,
        "logger": "airbridge.edge_worker",
    }
    with log_file.open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
