"""What triggers at the edge lean on in Airflow 3.0.4: its triggerer, its rows, its events and its comms."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from airflow.jobs import triggerer_job_runner
from airflow.jobs.job import Job, most_recent_job
from airflow.models.trigger import Trigger
from airflow.triggers import base

from airbridge.edge_worker._airflow import trigger_process, trigger_requests


def test_alive_triggerers_keep_their_triggers() -> None:
    """A triggerer takes over those of jobs that are not alive: by type, end and heartbeat, and not by state."""
    source = inspect.getsource(Trigger.assign_unassigned)
    for part in ("Job.end_date.is_(None)", "Job.latest_heartbeat > timezone.utcnow()", '"TriggererJob"'):
        assert part in source
    assert "Job.state" not in source


def test_health_prefers_running_jobs() -> None:
    """The health of the triggerer is that of a job in state ``running``, if there is one."""
    assert "JobState.RUNNING: 0" in inspect.getsource(most_recent_job)
    assert Job.__table__.c.state.type.length >= len("edge")


def test_requests_are_those_of_the_triggerer() -> None:
    """Every request that Airflow's triggerer answers is answered, and no other."""
    [union, _] = get_args(triggerer_job_runner.ToTriggerSupervisor)
    sent = {each.__name__ for each in get_args(union)} - {"TriggerStateChanges"}
    source = inspect.getsource(trigger_requests.TriggerComms)
    assert sent
    assert not {name for name in sent if f"comms.{name}()" not in source}


def test_kwargs_are_decoded_as_the_triggerer_does() -> None:
    """The triggerer decrypts kwargs, decodes them, and cleans each; then it sets these attributes."""
    source = inspect.getsource(triggerer_job_runner.TriggerRunner.create_triggers)
    for part in (
        "Trigger._decrypt_kwargs(workload.encrypted_kwargs)",
        "smart_decode_trigger_kwargs(v)",
        "trigger_instance.trigger_id = trigger_id",
        "trigger_instance.task_instance = ti = workload.ti",
        "trigger_instance.timeout_after",
    ):
        assert part in source
    assert 'startswith("{")' in inspect.getsource(Trigger._decrypt_kwargs)


def test_end_events_have_states_and_xcoms() -> None:
    """Events that end a task are these three."""
    found: dict[str, Any] = {
        str(each(xcoms={"a": 1}).task_instance_state): each
        for each in (base.TaskSuccessEvent, base.TaskFailedEvent, base.TaskSkippedEvent)
    }
    assert set(found) == {"success", "failed", "skipped"}
    assert set(base.BaseTaskEndEvent.__subclasses__()) == set(found.values())
    assert trigger_process.Channel.ended is None
