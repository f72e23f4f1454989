"""Tracing on, into a real OTLP receiver: is every task of a run one connected trace, also through a cut?

    python -m tests.chaos.traces --tasks 200 --cut 60

Two runs on one platform, its worker behind links that can fail: one in fair weather, one with a cut of that many
seconds in its middle. Prints what it found, one JSON object a run; exit status 1 if a trace is not whole.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tests.chaos.fleet import Fleet, Worker
from tests.support.collector import Collector, Got, collecting, connected
from tests.support.platform import LocalPlatform, Run, running, wait_for
from tests.support.weather import FAIR, REFUSE, Network

SLOTS = 8
"""Of the worker."""

DELIVERY_SECONDS = 60.0
"""Time for the edge's last spans to arrive after the run."""

DAG = """
import time
from airflow.sdk import DAG, task

@task(queue="us-east-1")
def work(number):
    time.sleep({seconds})
    return number

with DAG("{dag_id}", schedule=None, max_active_tasks=1000):
    for number in range({tasks}):
        work.override(task_id=f"work_{{number}}")(number)
"""


@dataclass(frozen=True)
class Found:
    """Figures of the traces of one run."""

    run: str
    tasks: int
    succeeded: int
    connected: int
    spans: int
    orphans: int
    cut_seconds: float
    ended_in_the_cut: int
    """Tasks whose process ended while the worker was cut off, by the time of their own spans."""
    reported_after_it: int
    """Of these, those whose report was delivered after the cut, by the time of its own span."""
    wrong: dict[str, str]

    @property
    def ok(self) -> bool:
        """True if every task is one connected trace and no span is without its parent."""
        return self.tasks == self.succeeded == self.connected and not self.orphans and not self.wrong


def prove(tasks: int, cut_seconds: float, task_seconds: float = 0.3) -> list[Found]:
    """Measure both runs with tasks of this length."""
    with collecting() as collector, Network() as network:
        settings = {"airbridge.traces_endpoint": collector.endpoint}
        with running(airflow=settings, workers_per_region=0) as platform:
            fleet = Fleet(platform, network, {"AIRBRIDGE_WORKER_SLOTS": str(SLOTS)})
            try:
                worker = fleet.add("traced-1", "default")
                worker.start()
                worker.wait_started()
                return [
                    _one(platform, collector, worker, "fair", tasks, 0.0, task_seconds),
                    _one(platform, collector, worker, "cut", tasks, cut_seconds, task_seconds),
                ]
            finally:
                fleet.close()


def _one(
    platform: LocalPlatform,
    collector: Collector,
    worker: Worker,
    name: str,
    tasks: int,
    cut_seconds: float,
    task_seconds: float,
) -> Found:
    dag_id = f"traced_{name}"
    platform.add_dag(dag_id, DAG.format(dag_id=dag_id, tasks=tasks, seconds=task_seconds))
    run_id = platform.trigger(dag_id)
    cut = (0.0, 0.0)
    if cut_seconds:
        # Tasks that start together end together: the cut is to come while the next ones run, not between the two.
        first = max(SLOTS, tasks // 10)
        wait_for(lambda: _count(platform, dag_id, "settled") >= first, "the first tasks to end", 120)
        wait_for(lambda: _count(platform, dag_id, "claimed") > 0, "the next to begin", 120)
        time.sleep(task_seconds / 4)
        began = time.time()
        worker.set(REFUSE)
        time.sleep(cut_seconds)
        worker.set(FAIR)
        cut = (began, time.time())
    run = platform.finish(dag_id, run_id, 300 + cut_seconds)
    _wait(lambda: _judge(collector, run, tasks, cut, name).ok)
    return _judge(collector, run, tasks, cut, name)


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DELIVERY_SECONDS
    while not done() and time.monotonic() < deadline:
        time.sleep(1)


def _count(platform: LocalPlatform, dag_id: str, state: str) -> int:
    query = "SELECT count(*) FROM airbridge_work_item WHERE dag_id = %s AND state = %s"
    return int(platform.query(query, dag_id, state)[0][0])


def _judge(collector: Collector, run: Run, tasks: int, cut: tuple[float, float], name: str) -> Found:
    traces = collector.of_tasks(run.dag_id)
    wrong = {task[0]: why for task, spans in traces.items() if (why := connected(spans)) is not None}
    ended = {task for task, spans in traces.items() if cut[0] < _at(spans, "run") < cut[1]}
    return Found(
        run=name,
        tasks=tasks,
        succeeded=sum(state == "success" for state in run.states().values()),
        connected=len(traces) - len(wrong),
        spans=sum(map(len, traces.values())),
        orphans=len(collector.orphans()),
        cut_seconds=round(cut[1] - cut[0], 1),
        ended_in_the_cut=len(ended),
        reported_after_it=sum(_at(traces[task], "report") > cut[1] for task in ended),
        wrong=dict(list(wrong.items())[:5]),
    )


def _at(spans: list[Got], name: str) -> float:
    return max((span.ended for span in spans if span.name == name), default=0.0)


def main() -> int:
    """Run the proof from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--cut", type=float, default=60.0, help="seconds")
    asked = parser.parse_args()
    found = prove(asked.tasks, asked.cut)
    for each in found:
        print(json.dumps(asdict(each) | {"ok": each.ok}))
    return 0 if all(each.ok for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
