"""Airflow 3.0.4 behaviour that AirBridge's log reading depends on: how the api-server finds a reader, calls it, and renders its lines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.orm import joinedload
from tests.support.airflow_home import Metadata
from tests.support.moto import Moto

from airbridge.core.aws.object_store import S3Store
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.ledger import items, leases
from airbridge.executor.ledger.models import Outcome

CONFIG_CLASS = "airbridge.control_plane.task_logs.logging_config.LOGGING_CONFIG"
RUN = "manual__2025-08-20T12:00:00+00:00"
PATH = f"dag_id=d/run_id={RUN}/task_id=t/attempt=1.log"
SEGMENT = f"logs/{PATH}/20250820T120000.000000Z-1-{uuid4()}"
WORKER = "worker-that-does-not-resolve"


def event(text: str, second: int = 0) -> str:
    return json.dumps({"timestamp": f"2025-08-20T12:00:{second:02d}Z", "event": text, "level": "info"}) + "\n"


@pytest.fixture
def bucket(moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """The log bucket of eu-west-1; the catalogue's home is us-east-1."""
    suffix = uuid4().hex[:12]
    text = 'home_region = "us-east-1"\n'
    for region in ("us-east-1", "eu-west-1"):
        logs = moto.bucket(f"logs-{region}-{suffix}", region)
        text += (
            f'[[region]]\nname = "{region}"\nlog_bucket = "{logs}"\nbundle_bucket = "b"\n'
            f'endpoint_url = "{moto.url}"\n[[region.pool]]\nqueue_url = "{moto.url}/{region}/q"\n'
        )
    (tmp_path / "regions.toml").write_text(text)
    for name, value in {
        **moto.environment,
        "AIRFLOW__AIRBRIDGE__REGIONS_FILE": str(tmp_path / "regions.toml"),
        "AIRFLOW__AIRBRIDGE__SECRETS_DIR": str(tmp_path / "secrets"),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(tmp_path / "airflow-logs"),
    }.items():
        monkeypatch.setenv(name, value)
    return S3Store(moto.client("s3", "eu-west-1"), f"logs-eu-west-1-{suffix}")


@pytest.fixture
def configured(bucket: S3Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Airflow's logging, configured as a control plane process has it."""
    from airflow import logging_config

    from airbridge.control_plane.task_logs import logging_config as ours

    before = logging.getLogger().handlers[:]
    monkeypatch.setattr(ours, "_made", {})
    with monkeypatch.context() as patched:
        patched.setenv("AIRFLOW__LOGGING__LOGGING_CONFIG_CLASS", CONFIG_CLASS)
        logging_config.configure_logging()
        yield
    logging_config.configure_logging()
    logging.getLogger().handlers[:] = before


@dataclass(frozen=True)
class Task:
    """A task instance in the database, and its work item in the ledger."""

    metadata: Metadata
    item_id: str

    def get(self) -> Any:
        """The task instance as the api-server loads it."""
        from airflow.models import TaskInstance, Trigger

        with self.metadata.session() as session:
            loading = joinedload(TaskInstance.trigger).joinedload(Trigger.triggerer_job)
            return session.scalar(select(TaskInstance).join(TaskInstance.dag_run).options(loading))

    def set(self, **columns: Any) -> None:
        from airflow.models import TaskInstance

        with self.metadata.session() as session:
            session.query(TaskInstance).update(columns)
            session.commit()

    def settle(self, outcome: Outcome, detail: str) -> None:
        with self.metadata.session() as session:
            row = leases.lock(session, [self.item_id])[self.item_id]
            leases.settle(session, row, outcome, detail)
            session.commit()


@pytest.fixture
def task(sqlite_metadata: Metadata) -> Task:
    from airflow.models import TaskInstance
    from airflow.models.dag import DAG
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.python import PythonOperator
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    when = datetime(2025, 8, 20, 12, tzinfo=UTC)
    with sqlite_metadata.session() as session:
        session.add(DagBundleModel(name="dags"))
        session.commit()
    with DAG("d", schedule=None, start_date=when) as dag:
        PythonOperator(task_id="t", python_callable=print)
    with sqlite_metadata.session() as session:
        DAG.bulk_write_to_db("dags", None, [dag], session=session)
        session.commit()
    SerializedDagModel.write_dag(dag, bundle_name="dags")
    dag.create_dagrun(
        run_id=RUN,
        logical_date=when,
        data_interval=(when, when),
        run_after=when,
        run_type=DagRunType.MANUAL,
        triggered_by=DagRunTriggeredByType.TEST,
        state=DagRunState.RUNNING,
    )
    with sqlite_metadata.session() as session:
        (ti_id,) = session.scalars(select(TaskInstance.id)).all()
    new = items.NewItem(
        ti_id=ti_id,
        dag_id="d",
        run_id=RUN,
        task_id="t",
        map_index=-1,
        try_number=1,
        queue="eu-west-1",
        region="eu-west-1",
        pool="default",
        slots=1,
        priority=1,
        workload={},
        placement={},
        disconnect={},
    )
    with sqlite_metadata.session() as session:
        items.place(session, [new], None)
        session.commit()
    task = Task(sqlite_metadata, new.id)
    task.set(try_number=1, hostname=WORKER, state="running")
    return task


WAY = "Timeline: "
"""Beginning of the line with the link to a task's timeline."""


@pytest.fixture
def show(configured: None, task: Task) -> Callable[[], list[str]]:
    """Return a function that reads the log's events as a user sees them, without the header of sources and the link to the timeline."""
    from airflow.utils.log.log_reader import TaskLogReader

    def read() -> list[str]:
        stream, _ = TaskLogReader().read_log_chunks(task.get(), 1, {})
        return [message.event for message in stream if not message.event.startswith(("::", WAY))]

    return read


def test_the_reader_is_found(configured: None) -> None:
    """Airflow takes REMOTE_TASK_LOG from the module of logging_config_class, and reads through our handler."""
    from airflow import logging_config
    from airflow.utils.log.log_reader import TaskLogReader

    from airbridge.control_plane.task_logs.handler import RegionalTaskHandler
    from airbridge.control_plane.task_logs.reader import RegionalLogs

    assert isinstance(logging_config.REMOTE_TASK_LOG, RegionalLogs)
    assert isinstance(TaskLogReader().log_handler, RegionalTaskHandler)
    assert logging_config.DEFAULT_REMOTE_CONN_ID is None


def test_importing_the_module_reads_nothing() -> None:
    """The module's two values are made on demand, and it has no others."""
    from airbridge.control_plane.task_logs import logging_config

    with pytest.raises(AttributeError, match="NO_SUCH_THING"):
        logging_config.NO_SUCH_THING  # noqa: B018


def test_airflows_own_remote_logging_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two readers exclude each other: the error names the setting to change."""
    from airbridge.control_plane.task_logs import logging_config

    monkeypatch.setattr(logging_config, "_made", {})
    monkeypatch.setenv("AIRFLOW__LOGGING__REMOTE_LOGGING", "True")
    with pytest.raises(ConfigurationError, match="remote_logging is True; it must be False"):
        logging_config.LOGGING_CONFIG  # noqa: B018


def test_log_path_matches_work_item(task: Task) -> None:
    """The path the handler reads is the path that Airflow gives a workload, which the worker ships under."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.helpers import log_filename_template_renderer
    from airflow.utils.log.file_task_handler import FileTaskHandler

    assert FileTaskHandler("/logs")._render_filename(task.get(), 1) == PATH
    with task.metadata.session() as session:
        ti = session.query(TaskInstance).one()
        assert log_filename_template_renderer()(ti=ti) == PATH


def test_follows_a_running_task(show: Callable[[], list[str]], bucket: S3Store, task: Task) -> None:
    """Each look at a running task shows what has come since, without a call to the worker."""
    started = time.monotonic()
    assert show() == []
    bucket.put(f"{SEGMENT}/00000001.log", event("one").encode())
    assert show() == ["one"]
    bucket.put(f"{SEGMENT}/00000002.log", event("two", 1).encode())
    assert show() == ["one", "two"]
    bucket.put(f"{SEGMENT}/full.log", (event("one") + event("two", 1) + event("three", 2)).encode())
    task.set(state="success")
    assert show() == ["one", "two", "three"]
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("state", ["running", "deferred", "failed"])
def test_no_call_to_the_worker(
    show: Callable[[], list[str]], task: Task, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow would call the worker's log server in these states; no request is sent to an edge worker."""
    asked: list[str] = []
    monkeypatch.setattr(
        "airflow.utils.log.file_task_handler._fetch_logs_from_service", lambda url, _: asked.append(url)
    )
    task.set(state=state)
    show()
    assert asked == []


def test_other_executors_logs_stay_readable(
    show: Callable[[], list[str]], task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that EdgeExecutor never had is read from its host, as Airflow does."""
    from airbridge.executor.ledger.models import WorkItemRow

    asked: list[str] = []
    monkeypatch.setattr(
        "airflow.utils.log.file_task_handler._fetch_logs_from_service", lambda url, _: asked.append(url)
    )
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "LocalExecutor")
    with task.metadata.session() as session:
        session.query(WorkItemRow).delete()
        session.commit()
    show()
    assert [url.split("/")[2] for url in asked] == [f"{WORKER}:8793"]


def test_purged_ledger(show: Callable[[], list[str]], bucket: S3Store, task: Task) -> None:
    """A log outlives the ledger's memory of where the task ran."""
    from airbridge.executor.ledger.models import WorkItemRow

    bucket.put(f"{SEGMENT}/full.log", event("one").encode())
    with task.metadata.session() as session:
        session.query(WorkItemRow).delete()
        session.commit()
    task.set(state="success")
    assert show() == ["one"]


def test_why_a_task_was_not_placed(show: Callable[[], list[str]], task: Task) -> None:
    """The log of a task that failed before it reached a worker has the reason."""
    task.settle(Outcome.UNPLACEABLE, "there is no region 'mars-1'; known are us-east-1, eu-west-1")
    task.set(state="failed", hostname="")
    assert show() == ["unplaceable: there is no region 'mars-1'; known are us-east-1, eu-west-1"]


def test_masked_stays_masked(show: Callable[[], list[str]], bucket: S3Store, task: Task) -> None:
    """Values that the worker masked are shown masked."""
    bucket.put(f"{SEGMENT}/full.log", event("the password is ***").encode())
    task.set(state="success")
    assert show() == ["the password is ***"]


def test_long_log_keeps_its_order(show: Callable[[], list[str]], bucket: S3Store, task: Task) -> None:
    """A log larger than Airflow's sorting window comes out in order and whole, over segments."""
    for part, hour in (("20250820T130000", "13"), ("20250820T120000", "12")):
        text = "".join(
            json.dumps(
                {"timestamp": f"2025-08-20T{hour}:{n // 60 % 60:02d}:{n % 60:02d}Z", "event": f"{hour} {n}"}
            )
            + "\n"
            for n in range(3600)
        )
        bucket.put(f"logs/{PATH}/{part}.000000Z-1-x/full.log", text.encode())
    task.set(state="success")
    assert show() == [f"{hour} {n}" for hour in ("12", "13") for n in range(3600)]


@pytest.mark.filterwarnings(
    "ignore:Support for class-based `config`"
)  # Airflow's models warn about themselves
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")  # so does its log endpoint
def test_rest_api(configured: None, bucket: S3Store, task: Task) -> None:
    """The REST API gives a running task's log as JSON and as a stream, with its sources."""
    from airflow.api_fastapi.app import create_app
    from fastapi.testclient import TestClient

    bucket.put(f"{SEGMENT}/00000001.log", (event("one") + event("two", 1)).encode())
    url = f"/api/v2/dags/d/dagRuns/{RUN}/taskInstances/t/logs/1"
    with TestClient(create_app(apps="core")) as client:
        token = client.get("/auth/token").json()["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        answer = client.get(url, headers=headers).json()
        header, _, *messages = answer["content"]
        spoken = [message["event"] for message in messages]
        assert [each for each in spoken if not each.startswith(WAY)] == ["one", "two"]
        assert [each for each in spoken if each.startswith(WAY) and "/airbridge/timeline?dag=d&" in each]
        assert header["sources"] == [f"s3://{bucket.bucket}/{SEGMENT}/ (eu-west-1)"]
        assert answer["continuation_token"] is not None

        stream = client.get(url, headers={**headers, "Accept": "application/x-ndjson"})
        events = [json.loads(line)["event"] for line in stream.text.splitlines()]
        assert [each for each in events if not each.startswith(WAY)][-2:] == ["one", "two"]
