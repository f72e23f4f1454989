"""Triggers at the edge on a running platform: outcomes beside LocalExecutor's, a cut, a killed worker, a cleared task."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.support.platform import BOTH_EXECUTORS, LocalPlatform, Run, running, wait_for

pytestmark = [pytest.mark.slow("make proof-sovereign"), pytest.mark.timeout(600)]
DAGS = Path(__file__).parent / "dags"
SETTINGS = {
    **BOTH_EXECUTORS,
    "airbridge.heartbeat_interval": "2",
    "airbridge.lease_seconds": "10",
}


@pytest.fixture(scope="module")
def triggers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """Two workers in each of two regions, Airflow's triggerer in the control plane, and LocalExecutor beside."""
    dags = tmp_path_factory.mktemp("triggers") / "dags"
    dags.mkdir()
    for name in ("edge_triggers", "edge_trigger_classes", "edge_trigger_own"):
        (dags / f"{name}.py").write_text((DAGS / f"{name}.py").read_text())
    with running(dags=dags, airflow=SETTINGS, workers_per_region=2) as platform:
        connection(platform, {"connection_id": "fs_default", "conn_type": "fs"})
        connection(
            platform,
            {"connection_id": "gate", "conn_type": "http", "host": "gate.example", "password": "hunter2!"},
        )
        yield platform


def connection(platform: LocalPlatform, value: dict[str, str]) -> None:
    platform.airflow._request("POST", "/api/v2/connections", value)


def rows(platform: LocalPlatform, run_id: str) -> list[tuple[str, str, str, str | None, int]]:
    """Task, state, outcome, worker and epoch of each trigger of a run."""
    return platform.query(
        "SELECT task_id, state, outcome, worker_id, epoch FROM airbridge_work_item "
        "WHERE kind = 'trigger' AND run_id = %s ORDER BY task_id",
        run_id,
    )


def held_by(platform: LocalPlatform, run_id: str, timeout_seconds: float = 60.0) -> str:
    """Wait until a worker holds the run's trigger; return the worker."""

    def held() -> bool:
        return any(state == "claimed" for _, state, _, _, _ in rows(platform, run_id))

    wait_for(held, "a worker to hold the trigger", timeout_seconds)
    [(_, _, _, worker, _)] = rows(platform, run_id)
    assert worker is not None
    return worker


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def opened(port: int) -> Iterator[None]:
    """A port that answers."""
    with socket.create_server(("127.0.0.1", port)):
        yield


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does not run meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def fired(platform: LocalPlatform, run_id: str) -> list[datetime]:
    """Times at which workers recorded events of the run's triggers that were applied."""
    found = platform.query(
        "SELECT e.detail->>'fired_at' FROM airbridge_event e JOIN airbridge_work_item i ON i.id = e.item_id "
        "WHERE e.event = 'trigger.fired' AND i.run_id = %s",
        run_id,
    )
    return [datetime.fromisoformat(text) for (text,) in found]


def dated_run(platform: LocalPlatform, dag_id: str, conf: dict[str, str]) -> str:
    """Start a run with a logical date: sensors of other DAGs find runs by it."""
    platform.airflow.wait_for_dag(dag_id)
    platform.airflow.unpause(dag_id)
    body = {"logical_date": datetime.now(UTC).isoformat(), "conf": conf}
    started = platform.airflow._json("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)
    return str(started["dag_run_id"])


def test_standard_provider_has_equal_outcomes(triggers: LocalPlatform) -> None:
    """Every deferrable operator of the standard provider ends as with LocalExecutor and Airflow's triggerer; their triggers ran on workers."""
    folder = triggers.directory.root.parent / "watched"
    folder.mkdir(mode=0o755)
    triggers.airflow.wait_for_dag("edge_triggers_child")
    triggers.airflow.unpause("edge_triggers_child")
    dag_ids = ("edge_triggers__edge", "edge_triggers__local")
    ids = [dated_run(triggers, dag_id, {"folder": str(folder)}) for dag_id in dag_ids]
    wait_for(
        lambda: "file" in {task for task, *_ in rows(triggers, ids[0])}, "the sensor of a file to defer", 200
    )
    (folder / "there").touch()
    edge, local = (triggers.finish(*each, timeout_seconds=450) for each in zip(dag_ids, ids, strict=True))
    assert edge.states() == local.states()
    failed = {task for (task, _), state in edge.states().items() if state != "success"}
    assert failed == {"file_never"}
    ours = rows(triggers, edge.run_id)
    # The scheduler itself defers a task that starts from its trigger: no executor has a part in it.
    expected = {ti["task_id"] for ti in edge.tasks} - {"starts_from_trigger"}
    # On a machine that is so slow that their time is over already, these do not defer.
    late = {"time_delta", "ends_from_trigger"}
    assert expected - late <= {task for task, *_ in ours} <= expected
    assert {outcome for task, _, outcome, *_ in ours if task != "file_never"} == {"success"}
    assert rows(triggers, local.run_id) == []
    # Its trigger stays at home, and it is resumed in its pool.
    starts = ("starts_from_trigger", -1)
    assert starts in triggers.places(edge)
    assert starts not in triggers.places(local)


def test_own_trigger_fires_with_its_log(triggers: LocalPlatform) -> None:
    """A trigger of the bundle's own reads a connection and fires on a worker; its log is in the task's, with the password masked."""
    port = free_port()
    run_id = triggers.trigger("edge_trigger_waits", {"port": port, "conn_id": "gate"})
    worker = held_by(triggers, run_id)
    with opened(port):
        run = triggers.finish("edge_trigger_waits", run_id)
    assert run.state == "success"
    assert triggers.xcom(run, "waits")["port"] == port
    assert worker.startswith("us-east-1")
    wait_for(lambda: "waiting for port" in triggers.task_log(run, "waits"), "the trigger's log", 60)
    text = triggers.task_log(run, "waits")
    assert "read gate.example with password ***" in text
    assert "hunter2!" not in text


def test_event_during_a_cut_is_applied_once(triggers: LocalPlatform) -> None:
    """An event that fires while the gateway is out of reach is journalled, and applied once when it is back, with its true time."""
    port = free_port()
    run_id = triggers.trigger("edge_trigger_waits", {"port": port})
    held_by(triggers, run_id)
    time.sleep(2)
    with stopped(triggers.gateway_pid):
        with opened(port):
            time.sleep(4)
        restored = time.time()
        time.sleep(1)
    run = triggers.finish("edge_trigger_waits", run_id)
    assert run.state == "success"
    [at] = fired(triggers, run_id)
    assert at.timestamp() < restored
    [(_, state, outcome, _, epoch)] = rows(triggers, run_id)
    assert (state, outcome, epoch) == ("settled", "success", 1)


def test_killed_workers_trigger_goes_to_another(triggers: LocalPlatform) -> None:
    """A worker that is gone for longer than `lost_after` loses the trigger to another; the event is applied once."""
    port = free_port()
    run_id = triggers.trigger("edge_trigger_waits", {"port": port})
    worker = held_by(triggers, run_id)
    pid = triggers.worker_pids()[worker]
    with stopped(pid):
        wait_for(lambda: taken_over(triggers, run_id, worker), "another worker to take over", 90)
        with opened(port):
            run = triggers.finish("edge_trigger_waits", run_id)
    assert run.state == "success"
    [(_, _, outcome, other, epoch)] = rows(triggers, run_id)
    assert (outcome, epoch) == ("success", 2)
    assert other != worker
    assert len(fired(triggers, run_id)) == 1


def taken_over(platform: LocalPlatform, run_id: str, worker: str) -> bool:
    [(_, state, _, other, _)] = rows(platform, run_id)
    return state == "claimed" and other != worker


def test_restarted_worker_takes_its_triggers_up(triggers: LocalPlatform) -> None:
    """A worker that is killed and restarted runs the triggers of its journal again, under the same epoch."""
    port = free_port()
    run_id = triggers.trigger("edge_trigger_waits", {"port": port})
    worker = held_by(triggers, run_id)
    triggers.kill(f"worker-{worker}")
    triggers.wait_ready(120)
    with opened(port):
        run = triggers.finish("edge_trigger_waits", run_id)
    assert run.state == "success"
    [(_, _, outcome, _, epoch)] = rows(triggers, run_id)
    assert outcome == "success"
    assert epoch in {1, 2}


def test_failing_trigger_fails_its_task(triggers: LocalPlatform) -> None:
    """A trigger that raises fails its task, whose log has the traceback."""
    run = triggers.run("edge_trigger_fails", {"port": 1})
    assert run.state == "failed"
    assert "a trigger's own failure" in triggers.task_log(run, "waits")


def test_timeout_fails_the_task_and_ends_the_trigger(triggers: LocalPlatform) -> None:
    """A task whose trigger takes too long fails, and the trigger is cancelled on its worker."""
    run = triggers.run("edge_trigger_times_out", {"port": free_port()})
    assert run.state == "failed"
    cancelled(triggers, run)


def test_cleared_task_ends_its_trigger(triggers: LocalPlatform) -> None:
    """Marking a deferred task failed cancels its trigger at the worker's next heartbeat."""
    run_id = triggers.trigger("edge_trigger_waits", {"port": free_port()})
    held_by(triggers, run_id)
    triggers.airflow._request(
        "PATCH",
        f"/api/v2/dags/edge_trigger_waits/dagRuns/{run_id}/taskInstances/waits",
        {"new_state": "failed"},
    )
    cancelled(triggers, triggers.finish("edge_trigger_waits", run_id))


def cancelled(platform: LocalPlatform, run: Run) -> None:
    def settled() -> bool:
        return all(
            (state, outcome) == ("settled", "cancelled")
            for _, state, outcome, *_ in rows(platform, run.run_id)
        )

    wait_for(settled, "the trigger to be cancelled", 60)


def test_drained_workers_trigger_moves(triggers: LocalPlatform) -> None:
    """A worker that is told to stop gives its triggers back, and ends; another takes them."""
    port = free_port()
    run_id = triggers.trigger("edge_trigger_waits", {"port": port})
    worker = held_by(triggers, run_id)
    triggers.kill(f"worker-{worker}", signal.SIGTERM)
    # The emulator may give the message to the long poll of the worker that has ended: it is visible again after a while.
    wait_for(lambda: rows(triggers, run_id)[0][4] == 2, "the trigger to be granted again", 240)
    with opened(port):
        run = triggers.finish("edge_trigger_waits", run_id)
    assert run.state == "success"
