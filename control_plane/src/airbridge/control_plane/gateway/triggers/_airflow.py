"""Airflow's triggers: their assignment, what a worker needs to run one, and what their events do.

Every function works on a session of the caller's transaction. tests/contract/test_trigger_internals.py fails if anything
here no longer holds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from airbridge.core.protocol import TriggerSpec


def assign(session: Any, ti_id: str, job_id: int) -> int | None:
    """Assign the trigger that a task instance is deferred on to a job; return its id, or None if there is none."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select, update

    deferred = select(TaskInstance.trigger_id).where(
        TaskInstance.id == ti_id,
        TaskInstance.state == TaskInstanceState.DEFERRED,
        TaskInstance.trigger_id.is_not(None),
    )
    trigger_id: int | None = session.scalar(deferred)
    if trigger_id is not None:
        session.execute(
            update(Trigger)
            .where(Trigger.id == trigger_id)
            .values(triggerer_id=job_id)
            .execution_options(synchronize_session=False)
        )
    return trigger_id


def spec(session: Any, ti_id: str, trigger_id: int) -> TriggerSpec | None:
    """Return what a worker needs to run a trigger; None if the task instance is no longer deferred on it."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select

    query = (
        select(Trigger.classpath, Trigger.encrypted_kwargs, TaskInstance.trigger_timeout)
        .join(TaskInstance, TaskInstance.trigger_id == Trigger.id)
        .where(
            Trigger.id == trigger_id,
            TaskInstance.id == ti_id,
            TaskInstance.state == TaskInstanceState.DEFERRED,
        )
    )
    found = session.execute(query).first()
    if found is None:
        return None
    classpath, encrypted, timeout = found
    return TriggerSpec(
        trigger_id=trigger_id,
        classpath=classpath,
        encoded_kwargs=_decrypted(encrypted),
        timeout_after=timeout,
    )


def _decrypted(encrypted: str) -> dict[str, Any]:
    """Return kwargs as JSON, still encoded: nothing of them is decoded here. See `Trigger._decrypt_kwargs`."""
    from airflow.models.crypto import get_fernet

    text = encrypted if encrypted.startswith("{") else get_fernet().decrypt(encrypted.encode()).decode()
    found: dict[str, Any] = json.loads(text)
    return found


def submit_event(
    session: Any, trigger_id: int, payload: Any, state: str | None, xcoms: dict[str, Any] | None
) -> None:
    """Apply an event: resume the deferred task, or end it with `state` if there is one. `payload` is encoded."""
    from airflow.models.trigger import Trigger
    from airflow.serialization.serialized_objects import BaseSerialization
    from airflow.triggers import base

    ends = {
        "success": base.TaskSuccessEvent,
        "failed": base.TaskFailedEvent,
        "skipped": base.TaskSkippedEvent,
    }
    if state is None:
        event = base.TriggerEvent(BaseSerialization.deserialize(payload).get("payload"))
    else:
        event = ends[state](xcoms=xcoms)
    Trigger.submit_event(trigger_id, event, session=session)


def submit_failure(session: Any, trigger_id: int, traceback: Sequence[str] | None) -> None:
    """Fail the deferred task, as a trigger that raised, or ended without an event, does."""
    from airflow.models.trigger import Trigger

    Trigger.submit_failure(trigger_id, list(traceback) if traceback is not None else None, session=session)
