"""Autoscaling, end to end on one machine: a real platform and real workers under a burst, AWS's part played by a model.

    PYTHONPATH=infra/src python -m tests.autoscaling.simulate --stack infra/cdktf.out/local/stacks/edge-eu-west-1/cdk.tf.json

The control plane publishes its signal to CloudWatch (moto). Every ten seconds the alarms and policies of the synthesised
stack are evaluated on what was published there (`tests.autoscaling.model`); instances are started and drained
accordingly: worker processes, each with the drain script of its launch template. A Spot notice is given to one of them in the
middle of the burst. Ends when the group is back at zero; writes its measurements as JSON, and prints the verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.autoscaling.instances import COMPLETE, REPLACE, Instance, Launcher, MetadataService, drain_script
from tests.autoscaling.model import Decision, Group, Sample, Scaler
from tests.support.platform import LocalPlatform, running

from airbridge.control_plane.local.services import aws

REGION, POOL, SLOTS = "eu-west-1", "default", 4
NAMESPACE = "AirBridge"
METRICS = ("BacklogPerSlot", "WorkPerSlot")
TICK_SECONDS = 0.5
PERIOD_SECONDS = 10.0
SPOT_SECONDS = 120.0
QUIET_SECONDS = 25.0
DAG = """
from datetime import UTC, datetime
import time
from airflow.sdk import dag, task

@dag(schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False, max_active_tasks={count})
def {name}():
    @task(queue="{region}")
    def work(number):
        time.sleep({seconds})
        return number

    work.expand(number=list(range({count})))

{name}()
"""
_NOW = """
SELECT count(*) FILTER (WHERE state IN ('placed', 'sent')), count(*) FILTER (WHERE state = 'claimed'),
       count(*) FILTER (WHERE state = 'settled' AND outcome = 'success'),
       count(*) FILTER (WHERE state = 'settled' AND outcome <> 'success')
FROM airbridge_work_item WHERE region = %s AND pool = %s
"""
_FIRST = "SELECT extract(epoch FROM min(placed_at)) FROM airbridge_work_item WHERE dag_id = %s"


@dataclass(frozen=True)
class Moment:
    """Measurements of one moment; counts, and `at` in seconds since the start."""

    at: float
    waiting: int
    running: int
    done: int
    failed: int
    capacity: int
    alive: int
    draining: int


@dataclass
class Seen:
    """The whole simulation."""

    started: float
    moments: list[Moment] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    spot: dict[str, Any] = field(default_factory=dict)
    instances: list[dict[str, Any]] = field(default_factory=list)
    backlogs: dict[str, float] = field(default_factory=dict)
    signal: list[Sample] = field(default_factory=list)
    tasks: dict[str, int] = field(default_factory=dict)
    tries: int = 0


class Simulation:
    """The loop that plays AWS."""

    def __init__(self, platform: LocalPlatform, group: Group, launcher: Launcher) -> None:
        self._platform = platform
        self._launcher = launcher
        self._scaler = Scaler(group, group.min_size)
        self._warmup = max(alarm.policy.warmup_seconds for alarm in group.alarms)
        self._window = max(alarm.period_seconds * alarm.periods for alarm in group.alarms) + 60
        self._cloudwatch = platform.aws_client("cloudwatch", REGION)
        self._evaluated = 0.0
        self._highests: dict[tuple[str, float], float | None] = {}
        self.instances: list[Instance] = []
        self.seen = Seen(started=time.time())

    @property
    def standing(self) -> list[Instance]:
        """Instances that the group counts on."""
        return [each for each in self.instances if not each.leaving]

    @property
    def capacity(self) -> int:
        """The group's desired capacity."""
        return self._scaler.capacity

    def tick(self) -> Moment:
        """Evaluate the alarms if they are due, apply the instances' calls, and take a measurement."""
        now = time.time()
        if now // 10 > self._evaluated // 10:
            self._evaluated = now
            self._decide(now)
        self._apply_calls(now)
        self._reconcile(now)
        moment = self._look(now)
        self.seen.moments.append(moment)
        return moment

    def spot_notice(self) -> Instance:
        """Give the oldest instance a notice."""
        now = time.time()
        chosen = self.standing[0]
        chosen.notify(now, datetime.fromtimestamp(now + SPOT_SECONDS, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        self.seen.spot = {"instance": chosen.name, "noticed_at": now - self.seen.started}
        say(f"{now - self.seen.started:6.1f} s  Spot notice to {chosen.name}")
        return chosen

    def _decide(self, now: float) -> None:
        samples = {metric: self._published(metric, now) for metric in METRICS}
        self.seen.signal += [
            (at - self.seen.started, value)
            for at, value in samples[METRICS[0]]
            if at - self.seen.started > (self.seen.signal[-1][0] if self.seen.signal else -1)
        ]
        warming = len([one for one in self.standing if now - one.launched_at < self._warmup])
        for decision in self._scaler.decide(now, samples, warming):
            self._note(decision)

    def _note(self, decision: Decision) -> None:
        at = decision.at - self.seen.started
        self.seen.decisions.append({**asdict(decision), "at": at})
        say(f"{at:6.1f} s  {decision.policy}: {decision.before} -> {decision.after}")

    def _published(self, metric: str, now: float) -> list[Sample]:
        """Return the control plane's metric from CloudWatch: the maximum of each ten seconds that are over."""
        last = now // PERIOD_SECONDS * PERIOD_SECONDS
        starts = [last - PERIOD_SECONDS * n for n in range(1, round(self._window / PERIOD_SECONDS))]
        found = [(start, self._highest(metric, start)) for start in reversed(starts)]
        return [(start, value) for start, value in found if value is not None]

    def _highest(self, metric: str, start: float) -> float | None:
        """Return the maximum of one period. Each period is queried alone: moto counts its periods from the first datum, not from the clock."""
        if (metric, start) not in self._highests:
            points = self._cloudwatch.get_metric_statistics(
                Namespace=NAMESPACE,
                MetricName=metric,
                Dimensions=[{"Name": "Region", "Value": REGION}, {"Name": "Pool", "Value": POOL}],
                StartTime=datetime.fromtimestamp(start, UTC),
                EndTime=datetime.fromtimestamp(start + PERIOD_SECONDS, UTC),
                Period=round(PERIOD_SECONDS),
                Statistics=["Maximum"],
            )["Datapoints"]
            self._highests[metric, start] = max((float(one["Maximum"]) for one in points), default=None)
        return self._highests[metric, start]

    def _apply_calls(self, now: float) -> None:
        for one in self.instances:
            if one.ended_at is not None:
                continue
            for call in one.new_calls():
                if call == REPLACE:
                    one.terminate()
                if call == COMPLETE:
                    self._end(one, now)
            if one.spot_noticed_at and one.ended_at is None and now > one.spot_noticed_at + SPOT_SECONDS:
                self._end(one, now)

    def _end(self, one: Instance, now: float) -> None:
        status = one.worker.poll()
        one.kill()
        one.ended_at = now
        at = now - self.seen.started
        self.seen.instances.append(
            {
                "name": one.name,
                "launched_at": one.launched_at - self.seen.started,
                "ended_at": at,
                "worker": status,
            }
        )
        if one.spot_noticed_at:
            self.seen.spot |= {"drained_at": at, "worker": status}
        say(f"{at:6.1f} s  {one.name} has ended; its worker with status {status}")

    def _reconcile(self, now: float) -> None:
        while len(self.standing) < self.capacity:
            name = f"i-{len(self.instances) + 1:02d}"
            self.instances.append(self._launcher.launch(name, now, self._token()))
        for one in self.standing[: max(0, len(self.standing) - self.capacity)]:
            one.terminate()

    def _token(self) -> str:
        with self._platform.operator() as client:
            body = {"token": {"kind": "join", "region": REGION, "uses": 1}}
            return str(client.post("/operator/v1/tokens", json=body).raise_for_status().json()["token"])

    def _look(self, now: float) -> Moment:
        [(waiting, running_, done, failed)] = self._platform.query(_NOW, REGION, POOL)
        return Moment(
            at=now - self.seen.started,
            waiting=waiting,
            running=running_,
            done=done,
            failed=failed,
            capacity=self.capacity,
            alive=len([one for one in self.instances if one.ended_at is None]),
            draining=len([one for one in self.instances if one.leaving and one.ended_at is None]),
        )


def simulate(simulation: Simulation, platform: LocalPlatform, tasks: int, patience: float) -> None:
    """A trickle, a burst with a Spot notice in its middle, and the way back to nothing."""
    runs = {name: _load(simulation, platform, name, count, patience) for name, count in loads(tasks)}
    say("all tasks are done; waiting for the group to shrink to nothing")
    _until(simulation, lambda moment: moment.capacity == moment.alive == 0, patience)
    for name, run_id in runs.items():
        run = platform.finish(name, run_id)
        for task in run.tasks:
            state = str(task["state"])
            simulation.seen.tasks[state] = simulation.seen.tasks.get(state, 0) + 1
            simulation.seen.tries = max(simulation.seen.tries, task["try_number"])


def loads(tasks: int) -> list[tuple[str, int]]:
    """Return the pool's loads, each with its number of tasks."""
    return [("trickle", 2), ("burst", tasks)]


def _load(simulation: Simulation, platform: LocalPlatform, name: str, count: int, patience: float) -> str:
    """Trigger a DAG and wait for its tasks; a quarter into the burst an instance is given a Spot notice."""
    say(f"{time.time() - simulation.seen.started:6.1f} s  {name}: {count} tasks")
    run_id = platform.trigger(name)
    before = simulation.tick().done

    def ended(moment: Moment) -> bool:
        noticed = simulation.seen.spot or name != "burst" or len(simulation.standing) < 2
        if not noticed and moment.done - before >= count // 4:
            simulation.spot_notice()
        return moment.done + moment.failed >= before + count

    _until(simulation, ended, patience)
    # The alarm is to be quiet again: one that stays in ALARM repeats its action only once a minute.
    quiet = time.monotonic() + QUIET_SECONDS
    _until(simulation, lambda _moment: time.monotonic() > quiet, patience)
    [(first,)] = platform.query(_FIRST, name)
    simulation.seen.backlogs[name] = float(first) - simulation.seen.started
    return run_id


def _until(simulation: Simulation, holds: Any, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not holds(simulation.tick()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {patience:.0f} s: {simulation.seen.moments[-1]}")
        time.sleep(TICK_SECONDS)


def delays(seen: Seen) -> dict[str, float]:
    """Seconds from the first placed task of each load to the next decision to grow."""
    found = {}
    for name, at in seen.backlogs.items():
        after = [one["at"] for one in seen.decisions if one["at"] >= at and one["after"] > one["before"]]
        if after:
            found[name] = round(after[0] - at, 1)
    return found


def verdict(seen: Seen, tasks: int) -> dict[str, bool]:
    """Return the conditions, and whether each held."""
    sizes = [moment.alive for moment in seen.moments]
    return {
        "grew from nothing and went back to it": sizes[0] == sizes[-1] == 0 and max(sizes) > 1,
        "no task was lost or tried twice": seen.tasks == {"success": tasks + 2} and seen.tries == 1,
        "growing was decided within ten seconds of the backlog": len(delays(seen)) == 2
        and max(delays(seen).values()) <= 10,
        "the Spot notice was drained in time": seen.spot.get("drained_at", 1e9)
        - seen.spot.get("noticed_at", 0)
        < SPOT_SECONDS
        and seen.spot.get("worker") == 0,
        "every worker ended by itself": all(one["worker"] == 0 for one in seen.instances),
    }


def say(text: str) -> None:
    """Print progress on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def launcher(platform: LocalPlatform, group: Group) -> Iterator[Launcher]:
    """Yield the launcher of instances for this platform."""
    credentials = {**aws.CREDENTIALS, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}
    environment = {
        "PATH": os.environ["PATH"],
        "AIRBRIDGE_WORKER_GATEWAY_URL": platform.state.gateway_url,
        "AIRBRIDGE_WORKER_CA_FILE": str(platform.directory.ca_file),
        "AIRBRIDGE_WORKER_REGION": REGION,
        "AIRBRIDGE_WORKER_SLOTS": str(SLOTS),
        "AIRBRIDGE_WORKER_TASK_ENV": json.dumps({**credentials, "AWS_ENDPOINT_URL": platform.state.aws_url}),
        **credentials,
    }
    service = MetadataService()
    with tempfile.TemporaryDirectory(prefix="airbridge-instances-") as folder:
        try:
            yield Launcher(Path(folder), drain_script(group.boot_script), service, environment)
        finally:
            service.close()


def main() -> int:
    """Simulate; return 0 if every condition held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stack", type=Path, required=True, help="an edge stack's cdk.tf.json")
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--task-seconds", type=float, default=1.0)
    parser.add_argument("--patience", type=float, default=900.0, help="seconds for each part")
    parser.add_argument("--out", type=Path, default=Path(".benchmarks/autoscaling.json"))
    parser.add_argument("--picture", type=Path, help="plot it into this SVG file")
    options = parser.parse_args()
    group = Group.read(json.loads(options.stack.read_text()), POOL)
    settings = {"airbridge.scaling_namespace": NAMESPACE, "core.max_active_tasks_per_dag": "1000"}
    with running(workers_per_region=0, slots=SLOTS, airflow=settings) as platform:
        for name, count in loads(options.tasks):
            platform.add_dag(
                name, DAG.format(name=name, count=count, seconds=options.task_seconds, region=REGION)
            )
            platform.airflow.wait_for_dag(name)
        with launcher(platform, group) as launching:
            simulation = Simulation(platform, group, launching)
            try:
                simulate(simulation, platform, options.tasks, options.patience)
            finally:
                for one in simulation.instances:
                    one.kill()
    return report(simulation.seen, group, options)


def report(seen: Seen, group: Group, options: argparse.Namespace) -> int:
    """Write the measurements, and print the verdict."""
    held = verdict(seen, options.tasks)
    found = {"group": group.name, "verdict": held, "decided_after_seconds": delays(seen), **asdict(seen)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1))
    if options.picture:
        from tests.autoscaling.picture import draw

        options.picture.write_text(draw(found))
    sys.stdout.write(f"decided after: {delays(seen)}\n")
    for what, holds in held.items():
        sys.stdout.write(f"{'yes' if holds else 'NO '}  {what}\n")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
