"""Runs whose DAG is in another file or bundle by now: their tasks and callbacks stay with the code of their version."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.airflow_home import Metadata
from tests.support.scheduler import BUNDLE, Hand, Scheduler, flat_dag, start_run, store_dag

from airbridge.executor.placement._airflow import DagFile, DagFiles

V1, V2, V3, V4 = (f"sha256:{digit * 64}" for digit in "1234")


def moving_dag(path: str, **arguments: Any) -> Any:
    """The same DAG, in this file."""
    dag = flat_dag("moving", **arguments)
    dag.relative_fileloc = path
    return dag


def code_of(hand: Hand) -> list[tuple[str, str, str]]:
    """Return bundle, version and file of each work item."""
    found = [row.workload for row in hand.rows()]
    return [(each["bundle"]["name"], each["bundle"]["version"], each["dag_rel_path"]) for each in found]


def test_renamed_file(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A task of a run that began before its DAG's file was renamed gets the file's name of then, a new run's the new one."""
    store_dag(metadata, moving_dag("a.py"), version=V1)
    start_run(metadata, moving_dag("a.py"))
    store_dag(metadata, moving_dag("sub/a.py"), version=V2)
    start_run(metadata, moving_dag("sub/a.py"))
    scheduler.loop(2)
    assert sorted(code_of(hand)) == [(BUNDLE, V1, "a.py"), (BUNDLE, V2, "sub/a.py")]


def test_dag_in_another_bundle(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A task of a run that began in another bundle gets that bundle: the version is none of the new one."""
    store_dag(metadata, moving_dag("a.py"), version=V1)
    start_run(metadata, moving_dag("a.py"))
    store_dag(metadata, moving_dag("b.py"), version=V2, bundle_name="other")
    scheduler.loop(2)
    assert code_of(hand) == [(BUNDLE, V1, "a.py")]


def test_version_without_change_of_the_dag(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A version that left the DAG as it was has no serialised DAG of its own: its runs have the one from before."""
    store_dag(metadata, moving_dag("old.py"), version="sha256:" + "0" * 64)
    start_run(metadata, moving_dag("old.py"), state="success")
    store_dag(metadata, moving_dag("a.py"), version=V1)
    store_dag(metadata, moving_dag("a.py"), version=V2)
    start_run(metadata, moving_dag("a.py"))
    store_dag(metadata, moving_dag("sub/a.py"), version=V3)
    scheduler.loop(2)
    assert code_of(hand) == [(BUNDLE, V2, "a.py")]


def clear(metadata: Metadata, run_id: str) -> None:
    """Clear a run's tasks, as a user does in the UI."""
    from airflow.models.taskinstance import TaskInstance, clear_task_instances
    from sqlalchemy import select

    with metadata.session() as session:
        tis = session.scalars(select(TaskInstance).where(TaskInstance.run_id == run_id)).unique().all()
        clear_task_instances(tis, session)
        session.commit()


def test_cleared_run(metadata: Metadata, scheduler: Scheduler, hand: Hand) -> None:
    """A cleared run is moved to the version of that time, and its tasks to the file of that time, not to that of the first attempt."""
    store_dag(metadata, moving_dag("old.py"), version=V1)
    run_id = start_run(metadata, moving_dag("old.py"))
    scheduler.loop(2)
    hand.claim(hand.rows())
    hand.finish(hand.rows())
    scheduler.loop(2)
    store_dag(metadata, moving_dag("a.py"), version=V2)
    start_run(metadata, moving_dag("a.py"), state="success")
    store_dag(metadata, moving_dag("a.py"), version=V3)
    clear(metadata, run_id)
    store_dag(metadata, moving_dag("sub/a.py"), version=V4)
    scheduler.loop(4)
    assert code_of(hand)[-1] == (BUNDLE, V3, "a.py")


def test_callback_of_a_task(metadata: Metadata, scheduler: Scheduler) -> None:
    """The failure callback of a task is run from the file of its run's version."""
    arguments = {"queue": "mars", "on_failure_callback": lambda context: None}
    store_dag(metadata, moving_dag("a.py", **arguments), version=V1)
    start_run(metadata, moving_dag("a.py", **arguments))
    store_dag(metadata, moving_dag("b.py", **arguments), version=V2, bundle_name="other")
    scheduler.loop(3)
    [request] = scheduler.executor.callback_sink.sent
    assert (request.bundle_name, request.bundle_version, request.filepath) == (BUNDLE, V1, "a.py")


@pytest.mark.parametrize(
    ("pinned", "code"),
    [(True, (BUNDLE, V1, "a.py")), (False, ("other", V2, "b.py"))],
    ids=["pinned", "not pinned"],
)
def test_callback_of_a_run(
    metadata: Metadata, scheduler: Scheduler, hand: Hand, pinned: bool, code: tuple[str, str, str]
) -> None:
    """A run's callback has the file of the version that it is pinned to, and of the newest if it is not."""

    def dag(path: str) -> Any:
        made = moving_dag(path)
        made.disable_bundle_versioning = not pinned
        made.has_on_failure_callback = True
        return made

    store_dag(metadata, dag("a.py"), version=V1)
    start_run(metadata, dag("a.py"))
    scheduler.loop(2)
    store_dag(metadata, dag("b.py"), version=V2, bundle_name="other")
    hand.claim(hand.rows())
    hand.finish(hand.rows(), state="failed")
    scheduler.loop(2)
    [request] = scheduler.executor.callback_sink.sent
    assert (request.bundle_name, request.bundle_version, request.filepath) == code


def test_each_version_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of a run's version are located by one query, while it is among the versions used last."""
    from airbridge.executor.placement import _airflow

    looked_up: list[str] = []

    def look_up(_session: Any, dag_id: str, _run_id: str, version: str) -> DagFile:
        looked_up.append(version)
        return DagFile("b", f"{dag_id}.py")

    monkeypatch.setattr(_airflow, "_look_up", look_up)
    files = DagFiles(kept=1)
    for version in (V1, V1, V2, V1):
        assert files._find(None, "d", "r", version) == DagFile("b", "d.py")
    assert looked_up == [V1, V2, V1]
