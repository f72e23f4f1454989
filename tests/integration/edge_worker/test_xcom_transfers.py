"""Transfers between a task and its region's bucket: real HTTP, the agent's URLs, and what a hostile reference or object comes to."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from airflow.sdk.execution_time import task_runner
from tests.support.moto import CREDENTIALS, Moto
from tests.unit.edge_worker.test_attempts import grant

from airbridge.core.aws.object_store import connect
from airbridge.core.protocol import RegionSettings
from airbridge.core.residency import xcoms
from airbridge.core.residency.xcoms import Form, ObjectName, StoredXCom, XComFile
from airbridge.edge_worker._airflow.region_messages import LoadXCom, StoreXCom, Transfer
from airbridge.edge_worker._airflow.xcom_backend import RegionalXCom, XComTransferError
from airbridge.edge_worker.gateway_client.region import WorkerRegion
from airbridge.edge_worker.proxy import region_calls
from airbridge.edge_worker.proxy.protocol import Call, Reply
from airbridge.edge_worker.proxy.region_calls import RegionCalls
from airbridge.edge_worker.work.attempts import Attempt

REGION = "eu-west-1"
MIB = 1024 * 1024


@dataclass
class Worker:
    """The supervisor's and the agent's part, without the processes between."""

    region: WorkerRegion
    attempt: Attempt
    forwarded: list[Call] = field(default_factory=list)

    def send(self, message: StoreXCom | LoadXCom) -> Transfer:
        """Answer a task's message; what the gateway would have to grant is refused."""
        path = region_calls.STORE if isinstance(message, StoreXCom) else region_calls.LOAD
        call = Call(1, "POST", path, body=message.model_dump_json(exclude={"type"}))
        answer = RegionCalls(self.region).answer(self.attempt, call)
        if isinstance(answer, Call):
            self.forwarded.append(answer)
            raise PermissionError(answer.path)
        assert isinstance(answer, Reply)
        if answer.status != 200:
            raise PermissionError(answer.body)
        return Transfer.model_validate_json(answer.body or "")

    def objects(self) -> list[str]:
        """Keys in the bucket."""
        return [info.key for info in self.region.logs().list("xcoms/")]


@pytest.fixture
def worker(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS["aws_secret_access_key"])
    monkeypatch.setenv("AIRFLOW__AIRBRIDGE_XCOMS__INLINE_BYTES", "1000")
    monkeypatch.setenv("AIRFLOW__AIRBRIDGE_XCOMS__PREVIEW_BYTES", "10")
    settings = RegionSettings(
        region=REGION,
        pool="default",
        queue_url="memory",
        log_bucket=moto.bucket(f"logs-{uuid4().hex}", REGION),
        bundle_bucket="dags",
        endpoint_url=moto.url,
        task_options={xcoms.SECTION: {xcoms.INLINE: "1000", xcoms.PREVIEW: "10"}},
    )
    region = WorkerRegion(
        lambda known, bucket: connect(known.region, bucket, endpoint_url=known.endpoint_url)
    )
    region.settings = settings
    of_run = grant()
    of_run = of_run.model_copy(update={"ti": {**of_run.ti, "run_id": "run-1"}})
    it = Worker(region, Attempt(of_run))
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", it, raising=False)
    return it


def push(value: Any, key: str = "return_value") -> Any:
    return RegionalXCom.serialize_value(value, key=key)


def pull(value: Any) -> Any:
    return RegionalXCom.deserialize_value(SimpleNamespace(value=value))


@pytest.mark.parametrize(
    "value",
    ["x" * 5000, ["ä" * 600, 1, None], {"a": [1.5] * 500, "b": {"c": "\n" * 1000}}, [[]] * 1000],
    ids=["text", "list", "dict", "empty"],
)
def test_large_value_is_read_back(worker: Worker, value: Any) -> None:
    """A value above the bound lies in the bucket, with size and digest in its reference and a preview of the configured length."""
    reference = push(value)
    stored = StoredXCom.decode(reference)
    assert worker.objects() == [stored.object.key]
    assert (stored.region, stored.form, len(stored.preview)) == (REGION, Form.JSON, 10)
    assert worker.region.logs().get(stored.object.key).data == xcoms.text_of(value).encode()
    assert pull(reference) == value


def test_classes_are_read_back(worker: Worker) -> None:
    """What the Task SDK encodes as a class is one again."""
    from datetime import UTC, datetime

    value = [datetime(2025, 1, 1, tzinfo=UTC)] * 50
    assert pull(push(value)) == value


def test_small_value_and_skip_key_travel(worker: Worker) -> None:
    """A value within the bound is Airflow's own, and so is the scheduler's list of skipped tasks."""
    assert push({"a": 1}) == {"a": 1}
    skipped = {"skipped": ["a" * 200] * 10}
    assert push(skipped, xcoms.SKIP_KEY) == skipped
    assert worker.objects() == []


def test_file_streams(worker: Worker, tmp_path: Path) -> None:
    """A file of 64 MiB is written and read within a few MiB of memory."""
    path = tmp_path / "large"
    with path.open("wb") as file:
        for number in range(64):
            file.write(bytes([number]) * MIB)
    tracemalloc.start()
    try:
        copy = pull(push(XComFile(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert copy.path != path
    with copy.open() as one, path.open("rb") as other:
        assert all(one.read(MIB) == other.read(MIB) for _ in range(64))
    copy.path.unlink()
    assert peak < 16 * MIB


@pytest.mark.parametrize(
    "content", [b"y" * 5002, b"x" * 10, b"x" * 100_000], ids=["altered", "short", "long"]
)
def test_other_content_is_refused(worker: Worker, content: bytes) -> None:
    """An object that is not what the reference says is not given to the task."""
    reference = push("x" * 5000)
    worker.region.logs().put(worker.objects()[0], content)
    with pytest.raises(XComTransferError, match="is not what its reference says"):
        pull(reference)


def test_missing_object_is_named(worker: Worker) -> None:
    """An object that is gone fails the read with a message that has no URL in it."""
    reference = push("x" * 5000)
    worker.region.logs().delete(worker.objects())
    with pytest.raises(XComTransferError, match="the bucket answered 404") as raised:
        pull(reference)
    assert "Signature" not in str(raised.value)


@pytest.mark.parametrize(
    "key", ["logs/run/1.log", "xcoms/../logs/1.log", "xcoms/dag=a/../../logs/x", "/etc/passwd"]
)
def test_foreign_key_is_refused(worker: Worker, key: str) -> None:
    """No URL is made for a key that is no stored XCom's, whatever the task says."""
    with pytest.raises(PermissionError, match="the name of a stored XCom"):
        worker.send(LoadXCom(region=REGION, object=key))
    assert worker.forwarded == []


def test_other_dag_and_region_are_the_gateways_to_grant(worker: Worker) -> None:
    """The agent signs for the task's own DAG in its own region alone; the rest is asked of the gateway."""
    own = worker.attempt.grant.ti
    for region, dag_id in ((REGION, "payroll"), ("us-east-1", own["dag_id"])):
        name = ObjectName.of(dag_id, "run", uuid4(), "ab" * 32)
        with pytest.raises(PermissionError, match=f"stored-xcoms/{region}/xcoms/"):
            worker.send(LoadXCom(region=region, object=name.key))
    assert len(worker.forwarded) == 2


def test_object_is_written_beneath_own_name(worker: Worker) -> None:
    """A URL to write is for the attempt's own object, of the announced size and digest, which its signature covers."""
    transfer = worker.send(StoreXCom(size=5, digest="ab" * 32))
    assert f"/{worker.attempt.grant.item_id}/" in transfer.object
    assert "X-Amz-SignedHeaders=content-length%3Bhost%3Bx-amz-checksum-sha256" in transfer.url
    assert "X-Amz-Expires=300" in transfer.url
    for size, digest in ((-1, "ab" * 32), (6 * 1024**3, "ab" * 32), (5, "../../logs/x"), (5, "ab")):
        with pytest.raises(PermissionError):
            worker.send(StoreXCom(size=size, digest=digest))


@pytest.mark.parametrize("dag_id", ["..", ".", "a b", "ünïcode", "a/../b", "a%2Fb"])
def test_name_of_object_is_unambiguous(dag_id: str) -> None:
    """A DAG id is in the key in one spelling, and is no step in a path."""
    name = ObjectName.of(dag_id, "run", uuid4(), "ab" * 32)
    assert ObjectName.parse(name.key) == name
    assert name.key.count("/") == 4
    assert json.loads(json.dumps(name.key)) == name.key
