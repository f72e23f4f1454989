"""A started executor: settings from Airflow's configuration, keys from files, SQS on moto, its own threads."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.airflow_home import Metadata
from tests.support.items import new_item
from tests.support.moto import CREDENTIALS, Moto
from tests.support.scheduler import Hand, Scheduler, flat_dag, start_run, store_dag

from airbridge.core import near
from airbridge.core.aws.queue import SqsQueue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.signing import Signer, Verifier
from airbridge.executor import EdgeExecutor
from airbridge.executor.ledger import items
from airbridge.executor.ledger.manager import LedgerDBManager
from airbridge.executor.ledger.models import Outcome

REGIONS = ("us-east-1", "eu-west-1")


@pytest.fixture
def signer() -> Signer:
    return Signer.generate()


@pytest.fixture
def queues(moto: Moto) -> dict[str, str]:
    name = f"work-{time.time_ns()}"
    return {region: moto.client("sqs", region).create_queue(QueueName=name)["QueueUrl"] for region in REGIONS}


@pytest.fixture
def configured(
    tmp_path: Path,
    moto: Moto,
    queues: dict[str, str],
    signer: Signer,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """Write a deployment's files and settings; return their directory."""
    regions = "".join(
        f'[[region]]\nname = "{name}"\nlog_bucket = "l"\nbundle_bucket = "b"\nendpoint_url = "{moto.url}"\n'
        f'[[region.pool]]\nqueue_url = "{url}"\n'
        for name, url in queues.items()
    )
    (tmp_path / "regions.toml").write_text(f'home_region = "us-east-1"\n{regions}')
    (tmp_path / "signing.key").write_bytes(signer.to_pem())
    options = {
        "regions_file": tmp_path / "regions.toml",
        "secrets_dir": tmp_path,
        "outbox_interval": "0.2",
        "reconcile_interval": "0.1",
        "lost_after": "1",
        "scaling_namespace": "AirBridge",
    }
    for name, value in options.items():
        monkeypatch.setenv(f"AIRFLOW__AIRBRIDGE__{name.upper()}", str(value))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS["aws_secret_access_key"])
    return tmp_path


@pytest.fixture
def executor(configured: Path) -> Iterator[Any]:
    executor = EdgeExecutor(parallelism=8)
    yield executor
    executor.end()


def until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_a_task_travels_over_sqs(
    metadata: Metadata, executor: Any, moto: Moto, queues: dict[str, str], signer: Signer
) -> None:
    """The scheduler's loop writes the ledger; the message turns up, signed, on the queue of its region."""
    scheduler = Scheduler(metadata, executor)
    executor.start()
    dag = flat_dag(executor_config=near("region:eu-west-1"))
    store_dag(metadata, dag)
    start_run(metadata, dag)
    scheduler.loop(2)
    queue = SqsQueue(moto.client("sqs", "eu-west-1"), queues["eu-west-1"])
    [message] = queue.receive(wait_seconds=20)
    item = Verifier([signer.verify_key]).open(message.body)
    hand = Hand(metadata)
    [row] = hand.rows()
    assert (str(item.item_id), item.region) == (row.id, "eu-west-1")
    until(lambda: hand.rows()[0].sent_at is not None)

    hand.claim([row])
    # No worker renews the lease: with lost_after = 1 the reconciler fences the attempt a second later.
    until(lambda: bool(hand.rows("settled")))
    assert hand.rows()[0].outcome == Outcome.LOST
    scheduler.loop(2)
    assert hand.task_states() == {"t0": "failed"}


def test_backlog_is_published_in_its_region(metadata: Metadata, executor: Any, moto: Moto) -> None:
    """New work is published at once, in its own region's CloudWatch; without a live worker it counts by one
    worker's slots.
    """
    scheduler = Scheduler(metadata, executor)
    executor.start()
    dag = flat_dag(executor_config=near("region:eu-west-1"))
    store_dag(metadata, dag)
    start_run(metadata, dag)
    scheduler.loop(2)

    def highest(region: str, metric: str) -> float:
        now = datetime.now(UTC)
        dimensions = [{"Name": "Region", "Value": region}, {"Name": "Pool", "Value": "default"}]
        points = moto.client("cloudwatch", region).get_metric_statistics(
            Namespace="AirBridge",
            MetricName=metric,
            Dimensions=dimensions,
            StartTime=now - timedelta(minutes=2),
            EndTime=now + timedelta(minutes=1),
            Period=10,
            Statistics=["Maximum"],
        )["Datapoints"]
        return max((point["Maximum"] for point in points), default=-1.0)

    until(lambda: highest("eu-west-1", "BacklogPerSlot") == 1.0)
    assert highest("eu-west-1", "PoolWithoutHeartbeat") == 1.0
    until(lambda: highest("us-east-1", "BacklogPerSlot") == 0.0)


def test_ending_stops_every_thread(metadata: Metadata, executor: Any) -> None:
    """An executor that has ended leaves nothing running, and may be ended again."""
    executor.job_id = 1
    executor.start()
    names = {thread.name for thread in threading.enumerate() if thread.name.startswith("airbridge-")}
    # On SQLite, which has no notices, the listener's thread ends by itself.
    assert names - {"airbridge-listener"} == {
        "airbridge-reconciler",
        *(f"airbridge-{loop}-{region}" for loop in ("outbox", "scaling") for region in REGIONS),
    }
    executor.terminate()
    executor.end()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("airbridge-")]


def test_ending_restores_the_loop(metadata: Metadata, executor: Any) -> None:
    """An executor that has ended leaves Airflow's scheduler as it was: its steps, its reads and its sleep."""
    from airflow.jobs import scheduler_job_runner
    from airflow.models.dagrun import DagRun

    def parts() -> list[Any]:
        return [
            dict(vars(scheduler_job_runner.SchedulerJobRunner)),
            dict(vars(DagRun)),
            scheduler_job_runner.time,
        ]

    before = parts()
    Scheduler(metadata, executor)
    executor.start()
    assert [left != right for left, right in zip(before, parts(), strict=True)] == [True] * 3
    executor.end()
    assert parts() == before


def test_started_executor_pings_idle_connections(postgres_metadata: Metadata, executor: Any) -> None:
    """SQLAlchemy's ping at every checkout is off while the executor runs: `connection_pings` sends those that tell something."""
    pool = postgres_metadata.engine.pool
    assert pool._pre_ping
    executor.start()
    assert not pool._pre_ping
    executor.end()
    assert pool._pre_ping


def test_threads_import_nothing(postgres_metadata: Metadata, configured: Path) -> None:
    """LocalExecutor forks the scheduler: a child would wait for ever for a module that a thread was importing."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import TaskInstanceState

    dag = flat_dag(tasks=len(REGIONS))
    store_dag(postgres_metadata, dag)
    start_run(postgres_metadata, dag)
    with postgres_metadata.session() as session:
        # An item whose task instance is not queued would be cancelled, sometimes before it is sent.
        queued = session.query(TaskInstance).all()
        for task in queued:
            task.state = TaskInstanceState.QUEUED
        pairs = zip(queued, REGIONS, strict=True)
        items.place(session, [new_item(ti_id=str(task.id), region=region) for task, region in pairs], 1)
        session.commit()
    script = Path(__file__).with_name("imports_in_threads.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"sent": True, "imported": {}}


def test_missing_ledger_fails_start(sqlite_metadata: Metadata, executor: Any) -> None:
    """The error names the setting and the command that creates the tables."""
    with sqlite_metadata.session() as session:
        LedgerDBManager(session).downgrade("base")
    with pytest.raises(ConfigurationError, match=r"external_db_managers to 'airbridge\..*airflow db migrate"):
        executor.start()


def test_missing_key_fails_start(sqlite_metadata: Metadata, executor: Any, configured: Path) -> None:
    """The error names the file and the command that creates it."""
    (configured / "signing.key").unlink()
    with pytest.raises(ConfigurationError, match=r"signing\.key cannot be read: .*'airbridge init'"):
        executor.start()


def test_malformed_key_fails_start(sqlite_metadata: Metadata, executor: Any, configured: Path) -> None:
    """The error names a file that is no Ed25519 key."""
    (configured / "signing.key").write_text("not a key")
    with pytest.raises(ConfigurationError, match=r"signing\.key: .*'airbridge init' makes a right one"):
        executor.start()


def test_airflow_shows_the_settings(configured: Path) -> None:
    """`airflow config list` shows the section with its descriptions."""
    command = [
        sys.executable,
        "-m",
        "airflow",
        "config",
        "list",
        "--section",
        "airbridge",
        "--include-descriptions",
    ]
    shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert "[airbridge]" in shown
    assert "lost_after = 1" in shown
    assert "# Time without a heartbeat of its worker after which a running task is fenced off" in shown


def test_airflow_offers_the_worker_command(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`airflow airbridge worker` is there where the executor is configured, by either of its names."""
    for name in ("airbridge.executor.EdgeExecutor", "LocalExecutor,airbridge.executor.executor.EdgeExecutor"):
        monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", name)
        command = [sys.executable, "-m", "airflow", "airbridge", "worker", "--help"]
        shown = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
        assert "--config" in shown


def test_two_executors_side_by_side(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EdgeExecutor can run beside LocalExecutor, each with a name that tasks may select."""
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor,edge:airbridge.executor.EdgeExecutor")
    code = (
        "import json; from airflow.executors.executor_loader import ExecutorLoader as L;"
        "print(json.dumps([type(each).__name__ for each in L.init_executors()]));"
        "print(json.dumps(type(L.load_executor('edge')).__name__))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    lines = [json.loads(line) for line in found.stdout.splitlines() if line[:1] in {"[", '"'}]
    assert lines == [["LocalExecutor", "EdgeExecutor"], "EdgeExecutor"]
