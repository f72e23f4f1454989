"""An arena plays histories: one platform, two workers behind links, and the faults that a schedule injects.

Everything is real: Postgres, scheduler, dag-processor, triggerer, the gateway with its certificates, moto for AWS, the
workers' agents and the processes that they fork. Time is compressed: leases and patience of seconds.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos import power, recorder
from tests.chaos.fleet import HOME_REGION, Fleet, Worker
from tests.chaos.history import Death, History, TaskKey
from tests.chaos.recorder import Recorder
from tests.chaos.schedule import WORKERS, Duplicates, Fault, Kill, Run, Schedule
from tests.support import weather
from tests.support.platform import LocalPlatform, running, wait_for
from tests.support.weather import Link, Network

from airbridge.control_plane.identity.secrets import SIGNING_KEY
from airbridge.control_plane.local.services.aws import EmulatedRegion
from airbridge.core.protocol import WorkItem
from airbridge.core.signing import Signer

DAGS = Path(__file__).parent / "dags"
DAG_FILES = ("chaos_triggers", "chaos")
DAG_IDS = ("wide", "hasty", "chain", "mixed", "waiting", "stored", "called")
START_SECONDS = 240.0
# Larger values lie in the region's bucket.
RESIDENCY = f"""
[[region]]
name = "{HOME_REGION}"
xcom_inline_bytes = 1024
"""

# Seconds in place of minutes, so that leases lapse and messages expire within one history.
CONTROL_PLANE = {
    "airbridge.heartbeat_interval": "1",
    "airbridge.lease_seconds": "4",
    "airbridge.worker_alive_seconds": "8",
    "airbridge.lost_after": "60",
    "airbridge.message_ttl": "20",
    "airbridge.reconcile_interval": "0.5",
    "airbridge.outbox_interval": "0.5",
    "airbridge.outbox_backoff_limit": "2",
    "airbridge.certificate_lifetime": "300",
    "scheduler.scheduler_health_check_threshold": "15",
    "scheduler.orphaned_tasks_check_interval": "5",
    "scheduler.job_heartbeat_sec": "2",
    "scheduler.trigger_timeout_check_interval": "2",
}
WORKER = {
    "AIRBRIDGE_WORKER_SLOTS": "6",
    "AIRBRIDGE_WORKER_PREFETCH": "2",
    "AIRBRIDGE_WORKER_HEARTBEAT_SECONDS": "1",
    "AIRBRIDGE_WORKER_POLL_SECONDS": "2",
    "AIRBRIDGE_WORKER_REQUEST_TIMEOUT_SECONDS": "3",
    "AIRBRIDGE_WORKER_CONNECT_TIMEOUT_SECONDS": "2",
    "AIRBRIDGE_WORKER_RETRY_CAP_SECONDS": "1",
    "AIRBRIDGE_WORKER_CUT_OFF_AFTER_SECONDS": "1",
    "AIRBRIDGE_WORKER_CANCEL_GRACE_SECONDS": "2",
    "AIRBRIDGE_WORKER_TASK_KILL_GRACE_SECONDS": "1",
    "AIRBRIDGE_WORKER_LOG_CHUNK_SECONDS": "2",
}


@dataclass
class Tally:
    """Counts of the injected faults, over all histories of an arena."""

    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0


@dataclass(frozen=True)
class _Made:
    """A run that was triggered."""

    dag_id: str
    run_id: str
    plan: Mapping[str, Mapping[str, Any]]


@dataclass
class Arena:
    """See the module. Make one with `open_arena`."""

    platform: LocalPlatform
    fleet: Fleet
    files: Path
    tally: Tally = field(default_factory=Tally)
    lacks: str = ""
    """Promise that a mutant takes out of the tasks' processes; the DAG file plants it."""
    _histories: int = 0
    _deaths: list[Death] = field(default_factory=list)
    _cleared: set[TaskKey] = field(default_factory=set)

    def play(self, schedule: Schedule) -> History:
        """Make one history: start the work, inject the faults, repair everything, wait, and record."""
        self._histories += 1
        self._deaths = []
        self._cleared = set()
        effects = self.files / f"{self._histories}.jsonl"
        prefix = f"h{schedule.seed}-{self._histories}"
        made = self._start(schedule, effects, prefix)
        self._await_starts(effects, schedule.after_starts)
        for _, act in sorted(self._acts(schedule, prefix), key=lambda pair: pair[0]):
            act()
        self._repair()
        recorded = Recorder(self.platform, self._region)
        self._wait(recorded, prefix, schedule.settle_seconds)
        return self._record(schedule, recorded, effects, prefix, made)

    def restart(self, name: str) -> None:
        """Start a worker that ended by itself, for the next history."""
        self._up(next(worker for worker in self.fleet.workers if worker.name == name))

    def use_gateway(self, port: int | None) -> None:
        """Point every worker at the gateway on this port; None: at the platform's own."""
        for worker in self.fleet.workers:
            worker.gateway.retarget(port or self.fleet.gateway_port)

    def restart_workers(self, env: Mapping[str, str]) -> None:
        """End every worker, and start it again with these variables besides its own."""
        for worker in self.fleet.workers:
            worker.kill()
            worker.more_env = dict(env)
            worker.start()
        for worker in self.fleet.workers:
            worker.wait_started()

    def evidence(self) -> dict[str, str]:
        """Return every process's log so far, by file name."""
        logs = {
            path.name: path.read_text(errors="replace") for path in self.platform.directory.logs.glob("*.log")
        }
        return logs | {
            f"{one.name}.log": one.log_file.read_text(errors="replace") for one in self.fleet.workers
        }

    @property
    def _region(self) -> EmulatedRegion:
        return self.platform.options.regions[0]

    # --- work ---------------------------------------------------------------------------------------

    def _start(self, schedule: Schedule, effects: Path, prefix: str) -> list[_Made]:
        made = []
        for number, run in enumerate(schedule.runs):
            conf = {"effects": str(effects), "plan": dict(run.plan), "until": time.time() + schedule.until}
            conf |= {"lacks": self.lacks}
            run_id = self.platform.airflow.trigger(run.dag_id, conf, f"{prefix}-{number}")
            made.append(_Made(run.dag_id, run_id, run.plan))
        return made

    @staticmethod
    def _await_starts(effects: Path, wanted: int) -> None:
        if wanted:
            wait_for(
                lambda: sum(effect.what == "start" for effect in recorder.effects(effects)) >= wanted,
                f"{wanted} tasks to begin",
                START_SECONDS,
            )

    # --- trouble ------------------------------------------------------------------------------------

    def _acts(self, schedule: Schedule, prefix: str) -> Iterator[tuple[float, Callable[[], None]]]:
        """Yield every act with its time. Each waits for its own time, so that a slow act delays the following ones."""
        began = time.monotonic()

        def at(seconds: float, act: Callable[[], None]) -> tuple[float, Callable[[], None]]:
            def wait_and_act() -> None:
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                act()

            return seconds, wait_and_act

        for fault in schedule.faults:
            yield at(fault.at, lambda fault=fault: self._begin(fault))
            yield at(fault.at + fault.seconds, lambda fault=fault: self._end(fault))
        for kill in schedule.kills:
            yield at(kill.at, lambda kill=kill: self._kill(kill))
            if kill.victim in {"worker", "power"}:
                yield at(
                    kill.at + kill.down_seconds, lambda kill=kill: self._up(self.fleet.workers[kill.worker])
                )
        for clear in schedule.clears:
            yield at(
                clear.at,
                partial(self._clear, schedule.runs[clear.run], f"{prefix}-{clear.run}", clear.deferred),
            )
        for batch in schedule.duplicates:
            yield at(batch.at, lambda batch=batch: self._duplicate(batch, prefix))

    def _links(self, fault: Fault) -> list[Link]:
        worker = self.fleet.workers[fault.worker]
        return [getattr(worker, name) for name in fault.links]

    def _begin(self, fault: Fault) -> None:
        self.tally.faults[fault.weather] += 1
        for link in self._links(fault):
            link.set(fault.made)

    def _end(self, fault: Fault) -> None:
        for link in self._links(fault):
            link.set(weather.FAIR)

    def _kill(self, kill: Kill) -> None:
        if kill.victim in {"gateway", "scheduler"}:
            with suppress(AssertionError, ProcessLookupError):  # it is down already
                self.platform.kill(kill.victim)
                self.tally.kills[kill.victim] += 1
            return
        worker = self.fleet.workers[kill.worker]
        if worker.process is None or worker.process.poll() is not None:
            return
        self.tally.kills[kill.victim] += 1
        worker.kill()
        # Read before the worker is started again: the journal shows the results that it owed when it died.
        self._deaths.append(recorder.death(worker, time.time()))
        if kill.victim == "power":
            # Zygote and tasks end too: nothing may write to the files that are put back.
            worker.stop_all()
            power.restore(worker.journal, worker.durable, mark_survives=kill.mark_survives)

    def _up(self, worker: Worker) -> None:
        if worker.process is None or worker.process.poll() is not None:
            worker.start()

    def _clear(self, run: Run, run_id: str, deferred: bool) -> None:
        clear = self.platform.airflow.clear_all if deferred else self.platform.airflow.clear_running
        for one in clear(run.dag_id, run_id):
            self._cleared.add((run.dag_id, run_id, one["task_id"], one["map_index"]))

    def _duplicate(self, batch: Duplicates, prefix: str) -> None:
        """Send messages of this history's work items again, as a queue may: oldest and newest, settled or not."""
        rows = self.platform.query(
            "SELECT id::text, ti_id::text, region, pool, slots, workload, epoch, kind FROM airbridge_work_item"
            " WHERE run_id LIKE %s ORDER BY md5(id::text) LIMIT %s",
            f"{prefix}%",
            batch.count,
        )
        signer = Signer.from_pem((self.platform.directory.secrets / SIGNING_KEY).read_bytes())
        now = datetime.now(UTC)
        sqs = self.platform.aws_client("sqs", HOME_REGION)
        url = sqs.get_queue_url(QueueName=self._region.queue("default"))["QueueUrl"]
        for item_id, ti_id, region, pool, slots, workload, epoch, kind in rows:
            # A duplicate of the current grant, and a stale one that must be refused.
            for one in {max(0, epoch - 1), epoch}:
                message = WorkItem(
                    item_id=item_id,
                    ti_id=ti_id,
                    epoch=one,
                    region=region,
                    pool=pool,
                    kind=kind,
                    slots=max(1, slots),
                    bundle=workload["bundle"],
                    dag_rel_path=workload["dag_rel_path"],
                    issued_at=now,
                    expires_at=now + timedelta(seconds=60),
                )
                sqs.send_message(QueueUrl=url, MessageBody=signer.sign(message))
                self.tally.duplicates += 1

    def _repair(self) -> None:
        for worker in self.fleet.workers:
            worker.set(weather.FAIR)
            self._up(worker)
        self.platform.wait_ready(120)

    # --- the end ------------------------------------------------------------------------------------

    def _wait(self, recorded: Recorder, prefix: str, seconds: float) -> None:
        """Wait until everything has ended, or counts as stuck."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            runs = recorded.runs([prefix])
            over = all(state in {"success", "failed"} for state in runs.values())
            if over and not recorded.open_work(runs) and not any(map(self._owes, self.fleet.workers)):
                return
            time.sleep(0.3)

    @staticmethod
    def _owes(worker: Worker) -> bool:
        """Return whether a worker still has records to report, or logs to ship."""
        return bool(recorder.left_in_journal(worker) or recorder.logs_left(worker))

    def _record(
        self, schedule: Schedule, recorded: Recorder, effects: Path, prefix: str, made: list[_Made]
    ) -> History:
        runs = recorded.runs([prefix])
        items, triggers = recorded.items(runs), recorded.items(runs, "trigger")
        return History(
            schedule=schedule,
            runs=runs,
            plans={(run.dag_id, run.run_id): run.plan for run in made},
            effects=recorder.effects(effects),
            items=items,
            tasks=recorded.tasks(runs),
            xcoms=recorded.xcoms(runs),
            variables=recorded.variables(prefix),
            deaths=tuple(self._deaths),
            cleared=frozenset(self._cleared),
            reports=recorder.reports(self.fleet.workers),
            settlements=recorded.settlements((*items, *triggers)),
            triggers=triggers,
            applied=recorded.applied(triggers),
            cancelled=recorded.cancelled(triggers),
            lost=recorded.lost(triggers),
            fires=recorder.fires(effects),
            objects=recorded.objects(runs),
            journals={worker.name: recorder.left_in_journal(worker) for worker in self.fleet.workers},
            ended={
                worker.name: worker.process.returncode
                for worker in self.fleet.workers
                if worker.process is not None and worker.process.poll() is not None
            },
            logs=recorded.logs(items),
        )


@contextmanager
def open_arena() -> Iterator[Arena]:
    """Start platform, network and workers; stop them at the end of the block."""
    choices: dict[str, Any] = {"regions": (EmulatedRegion(name=HOME_REGION),), "workers_per_region": 0}
    with tempfile.TemporaryDirectory(prefix="airbridge-chaos-") as files, ExitStack() as stack:
        residency = Path(files, "residency.toml")
        residency.write_text(RESIDENCY)
        platform = stack.enter_context(running(airflow=CONTROL_PLANE, residency=residency, **choices))
        network = stack.enter_context(Network())
        for name in DAG_FILES:
            platform.add_dag_file(DAGS / f"{name}.py")
        fleet = Fleet(platform, network, environ=WORKER)
        try:
            for number in range(WORKERS):
                fleet.add(f"w{number}", "default").start()
            for worker in fleet.workers:
                worker.wait_started()
            for dag_id in (f"chaos-{name}" for name in DAG_IDS):
                platform.airflow.wait_for_dag(dag_id)
                platform.airflow.unpause(dag_id)
            yield Arena(platform, fleet, Path(files))
        finally:
            fleet.close()
