"""Writes that the worker acknowledged and the control plane refused: the attempt's success becomes a failure that names them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.integration.gateway.test_failures import CUSTOM, failing, kept_xcom
from tests.integration.gateway.world import World, finished, record, xcom

from airbridge.core.protocol import Record
from airbridge.executor.ledger.models import ItemState, Outcome

# Cases of https://github.com/apache/airflow/issues/69063 and /65379 (U+0000), and /48852 (large values).
NUL = "fixed\x00width"


def succeeded(grant: Any, seq: int, **more: Any) -> Record:
    return finished(grant, seq).model_copy(update=more)


@pytest.mark.parametrize("apart", [False, True], ids=["one exchange", "two exchanges"])
@pytest.mark.parametrize(
    ("method", "path", "body", "name"),
    [
        ("POST", "xcoms/{dag}/{run}/{task}/note", NUL, "XCom 'note'"),
        ("POST", "xcoms/{dag}/{run}/{task}/ends/", "x", "XCom 'ends'"),
        ("PUT", "task-instances/{ti}/rtif", {"env": NUL}, "the rendered fields"),
        (
            "PATCH",
            "task-instances/{ti}/skip-downstream",
            {"tasks": [NUL]},
            "the skipping of downstream tasks",
        ),
        ("PUT", "variables/colour", {"val": NUL, "description": None}, "variable 'colour'"),
        ("POST", "dag-runs/absent/run", {"conf": {}}, "run 'run' of DAG 'absent'"),
    ],
)
def test_success_after_refused_write_fails(
    world: World, apart: bool, method: str, path: str, body: Any, name: str
) -> None:
    """Each kind of write: the final state is not applied, and ledger, timeline and answer name the write and the reason."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    here = {"dag": grant.ti["dag_id"], "run": grant.ti["run_id"], "task": grant.ti["task_id"], "ti": "{ti}"}
    write = record(grant, 1, method, path.format(**here), body)
    if apart:
        [refused] = worker.exchange(write).results
        [final] = worker.exchange(finished(grant, 2)).results
    else:
        refused, final = worker.exchange(write, finished(grant, 2)).results
    assert refused.status >= 300
    assert final.status == 409
    detail = json.loads(final.body or "")["detail"]
    assert detail["reason"] == "refused_write"
    assert name in detail["message"]
    row = world.row(item)
    assert ("failed", ItemState.SETTLED, Outcome.FAILED) == (world.task(item).state, row.state, row.outcome)
    assert detail["message"] == row.detail
    [settled] = [each for each in world.events("item.settled") if each.item_id == item]
    assert name in settled.detail["reason"]


def test_refused_write_keeps_retries(world: World) -> None:
    """With tries left the attempt is retried, as after any failure; without it fails."""
    [item] = world.items(retries=1)
    worker = world.worker()
    grant = worker.grant(item)
    worker.exchange(xcom(grant, 1, "note", NUL), finished(grant, 2))
    with world.metadata.session() as session:
        from airflow.models.taskinstance import TaskInstance

        states = {
            ti.task_id: ti.state
            for ti in session.query(TaskInstance).filter(TaskInstance.dag_id == grant.ti["dag_id"])
        }
    assert states == {grant.ti["task_id"]: "up_for_retry"}
    assert world.row(item).outcome == Outcome.FAILED


def test_inapplicable_write_fails_attempt(world: World) -> None:
    """An error of the control plane's own (500) is a refusal too: the XCom is not there, so the task did not succeed."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    with failing(world, "xcom", "NEW.key = 'poison'", CUSTOM):
        first = worker.exchange(
            xcom(grant, 1, "before", "1"), xcom(grant, 2, "poison", "1"), finished(grant, 3)
        )
    assert [result.status for result in first.results] == [201, 500, 409]
    assert first == worker.exchange(
        xcom(grant, 1, "before", "1"), xcom(grant, 2, "poison", "1"), finished(grant, 3)
    )
    assert kept_xcom(world, grant, "before")
    assert "XCom 'poison'" in (world.row(item).detail or "")


def test_received_refusal_fails_nothing(world: World) -> None:
    """A write whose refusal the task received itself does not undo its success: it may have handled the error."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    [refused] = worker.exchange(record(grant, 1, "POST", "dag-runs/absent/run", {"conf": {}})).results
    [final] = worker.exchange(succeeded(grant, 2, answered=1)).results
    assert refused.status >= 400
    assert (final.status, world.task(item).state) == (204, "success")


@pytest.mark.parametrize("state", ["failed", "up_for_retry"])
def test_failure_after_refused_write_stands(world: World, state: str) -> None:
    """A task that failed by itself is reported as it was: its own reason is the better one."""
    [item] = world.items(retries=1)
    worker = world.worker()
    grant = worker.grant(item)
    _, final = worker.exchange(xcom(grant, 1, "note", NUL), finished(grant, 2, state)).results
    assert (final.status, world.row(item).detail) == (204, state)


@pytest.mark.parametrize(
    "body",
    [
        {"state": "skipped", "end_date": "2026-01-01T00:00:00Z"},
        {
            "state": "up_for_reschedule",
            "end_date": "2026-01-01T00:00:00Z",
            "reschedule_date": "2026-01-01T00:05:00Z",
        },
        {
            "state": "deferred",
            "classpath": "airflow.triggers.testing.SuccessTrigger",
            "next_method": "resume",
            "trigger_kwargs": {},
        },
    ],
    ids=lambda body: str(body["state"]),
)
def test_no_later_part_hides_refused_write(world: World, body: dict[str, Any]) -> None:
    """A skip, a reschedule and a deferral after a refused write fail: what follows would not know of it."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    state = record(grant, 2, "PATCH", "task-instances/{ti}/state", body)
    _, final = worker.exchange(xcom(grant, 1, "note", NUL), state).results
    assert (final.status, world.task(item).state) == (409, "failed")
