"""A deferrable sensor on a port of the region's own network, which the control plane cannot reach: fired, cut off, killed."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from tests.acceptance.test_edge_triggers import held_by, rows, taken_over
from tests.boot.wires import Namespace, Wire, forwarding, ip, is_root, namespace
from tests.chaos.fleet import Fleet, Worker
from tests.support import weather
from tests.support.platform import LocalPlatform, Run, running, wait_for
from tests.support.weather import LOOPBACK, Network

from airbridge.control_plane.local.services.aws import parse_regions

pytestmark = [
    pytest.mark.slow("make proof-sovereign"),
    pytest.mark.skipif(not is_root(), reason="needs root and ip(8)"),
    pytest.mark.timeout(600),
]
DAGS = Path(__file__).parent / "dags"
DAG_ID = "private_endpoint"
REGION = "eu-west-1"
# Of a network that is reserved for documentation: the machine has no route to a host of this address.
ENDPOINT = "192.0.2.7"
SETTINGS = {"airbridge.heartbeat_interval": "2", "airbridge.lease_seconds": "10"}
WORKER = {
    "AIRBRIDGE_WORKER_RETRY_CAP_SECONDS": "2",
    "AIRBRIDGE_WORKER_CUT_OFF_AFTER_SECONDS": "2",
    # The emulator gives messages to the long poll of a killed worker, too, and hides them for a while then.
    "AIRBRIDGE_WORKER_POLL_SECONDS": "2",
}
HIDDEN_SECONDS = 240.0
# An event's time is that of the worker's clock when it got the event from its trigger.
CLOCK_SECONDS = 1.0


@dataclass(frozen=True)
class Plant:
    """A region whose two workers are in a network of their own, with an endpoint; links lead from there to the control plane."""

    platform: LocalPlatform
    fleet: Fleet
    space: Namespace

    @contextmanager
    def opened(self, port: int) -> Iterator[None]:
        """A port of the endpoint that answers."""
        with self.space.listen(ENDPOINT, port):
            yield

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Take the links of all workers for the length of a block."""
        for worker in self.fleet.workers:
            worker.set(weather.BLACK_HOLE)
        try:
            yield
        finally:
            for worker in self.fleet.workers:
                worker.set(weather.FAIR)

    def deferred(self, port: int) -> tuple[str, Worker]:
        """Start a run; return it, and the worker that holds its trigger."""
        run_id = self.platform.trigger(DAG_ID, {"host": ENDPOINT, "port": port})
        name = held_by(self.platform, run_id, HIDDEN_SECONDS)
        return run_id, next(worker for worker in self.fleet.workers if worker.name == name)

    def finish(self, run_id: str) -> tuple[Run, float]:
        """Wait for the run's end; return it with the time at which its trigger fired, by the trigger itself."""
        run = self.platform.finish(DAG_ID, run_id)
        assert run.state == "success", run.states()
        return run, float(self.platform.xcom(run, "port")["at"])

    def applied(self, run_id: str) -> list[float]:
        """Times of the run's events that were applied."""
        found = self.platform.query(
            "SELECT e.detail->>'fired_at' FROM airbridge_event e JOIN airbridge_work_item i ON i.id = e.item_id "
            "WHERE e.event = 'trigger.fired' AND i.run_id = %s",
            run_id,
        )
        return [datetime.fromisoformat(text).timestamp() for (text,) in found]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A control plane, and two workers in a network namespace that has the endpoint and three links for each worker."""
    dags = tmp_path_factory.mktemp("private") / "dags"
    dags.mkdir()
    for name in ("private_endpoint", "private_endpoint_triggers"):
        (dags / f"{name}.py").write_text((DAGS / f"{name}.py").read_text())
    with ExitStack() as stack:
        space = stack.enter_context(namespace(f"plant-{os.getpid()}"))
        ip("-n", space.name, "address", "add", f"{ENDPOINT}/32", "dev", "lo")
        regions = parse_regions(["us-east-1", REGION])
        platform = stack.enter_context(
            running(dags=dags, regions=regions, workers_per_region=0, airflow=SETTINGS)
        )
        network = stack.enter_context(Network())
        within = ("ip", "netns", "exec", space.name)
        fleet = Fleet(platform, network, environ=WORKER, region=REGION, within=within)
        stack.callback(fleet.close)
        for number in range(2):
            worker = fleet.add(f"plant-{number}", "default")
            for link in worker.links:
                stack.enter_context(forwarding(into(space, link.port)))
            worker.start()
        for worker in fleet.workers:
            worker.wait_started()
        yield Plant(platform, fleet, space)


def into(space: Namespace, port: int) -> Wire:
    """A port of the namespace's loopback that leads to the same port of this machine's."""
    return Wire(space.listen(LOOPBACK, port), lambda: socket.create_connection((LOOPBACK, port), timeout=20))


def has_fired(worker: Worker, before: int) -> bool:
    return fired_on(worker) > before


def fired_on(worker: Worker) -> int:
    """Number of events that a worker has journalled, by its log."""
    return sum(event.get("event") == "trigger.fired" for event in worker.events())


def test_fires_on_port_of_the_regions_network(plant: Plant) -> None:
    """The sensor fires on a port that the worker's network has, and the control plane's has not."""
    port = 5432
    run_id, worker = plant.deferred(port)
    with plant.opened(port):
        plant.space.connect(ENDPOINT, port).close()
        with pytest.raises(OSError, match=r"timed out|unreachable|refused|No route"):
            socket.create_connection((ENDPOINT, port), timeout=3)
        _, fired_at = plant.finish(run_id)
    [at] = plant.applied(run_id)
    assert at == pytest.approx(fired_at, abs=CLOCK_SECONDS)
    assert rows(plant.platform, run_id) == [("port", "settled", "success", worker.name, 1)]


def test_event_of_a_cut_is_applied_once_at_its_time(plant: Plant) -> None:
    """The links are cut before the sensor fires and restored after: its event is applied once, with the time at which it fired."""
    port = 5433
    run_id, worker = plant.deferred(port)
    before = fired_on(worker)
    with plant.cut():
        with plant.opened(port):
            wait_for(lambda: has_fired(worker, before), "the trigger to fire in the cut", 10)
        time.sleep(3)
        assert plant.applied(run_id) == []
        restored = time.time()
    run, fired_at = plant.finish(run_id)
    [at] = plant.applied(run_id)
    assert at == pytest.approx(fired_at, abs=CLOCK_SECONDS)
    assert restored - at > 2
    assert rows(plant.platform, run_id) == [("port", "settled", "success", worker.name, 1)]
    assert run.task("port")["try_number"] == 1


def test_event_of_a_cut_survives_a_kill(plant: Plant) -> None:
    """A worker that is killed after its sensor fired in a cut reports the event when it is back: once, with its time."""
    port = 5434
    run_id, worker = plant.deferred(port)
    before = fired_on(worker)
    with plant.cut():
        with plant.opened(port):
            wait_for(lambda: has_fired(worker, before), "the trigger to fire in the cut", 10)
        worker.kill()
        killed = time.time()
        worker.start()
        time.sleep(2)
    _, fired_at = plant.finish(run_id)
    [at] = plant.applied(run_id)
    assert at == pytest.approx(fired_at, abs=CLOCK_SECONDS)
    assert at < killed
    assert rows(plant.platform, run_id) == [("port", "settled", "success", worker.name, 1)]
    worker.wait_started()


def test_killed_workers_sensor_goes_to_another(plant: Plant) -> None:
    """A worker that was killed and stays away loses the sensor to another one, on which it fires once."""
    port = 5435
    run_id, worker = plant.deferred(port)
    worker.kill()
    other_has_it = partial(taken_over, plant.platform, run_id, worker.name)
    wait_for(other_has_it, "another worker to take over", HIDDEN_SECONDS)
    with plant.opened(port):
        _, fired_at = plant.finish(run_id)
    [at] = plant.applied(run_id)
    assert at == pytest.approx(fired_at, abs=CLOCK_SECONDS)
    other = next(each for each in plant.fleet.workers if each is not worker)
    assert rows(plant.platform, run_id) == [("port", "settled", "success", other.name, 2)]
    worker.start()
    worker.wait_started()
