"""URLs to stored XComs that have expired when a task comes to use them: it gets fresh ones, by the gateway's grant where it needs one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from airflow.sdk.execution_time import task_runner
from tests.integration.edge_worker.test_xcom_transfers import REGION, Worker, pull, push, worker
from tests.support.expiring import Expiring, expiring
from tests.support.moto import Moto

from airbridge.control_plane.gateway.auth.residency import StoredRead
from airbridge.control_plane.gateway.work.stored_xcoms import StoredXComs
from airbridge.control_plane.policy.decisions import Access
from airbridge.core.aws.object_store import connect
from airbridge.core.regions import Region
from airbridge.core.residency import xcoms
from airbridge.core.residency.xcoms import ObjectName
from airbridge.edge_worker._airflow import xcom_backend
from airbridge.edge_worker._airflow.region_messages import LoadXCom, StoreXCom, Transfer
from airbridge.edge_worker._airflow.xcom_backend import XComTransferError
from airbridge.edge_worker.gateway_client.region import WorkerRegion

__all__ = ["worker"]

VALUE = ["x" * 100] * 50
SECONDS = 1


@dataclass
class Elsewhere:
    """A task of another region: the gateway's own part signs its URLs, and the task stands still before it uses some of them."""

    gateway: StoredXComs
    slow: int
    granted: list[str] = field(default_factory=list)

    def send(self, message: StoreXCom | LoadXCom) -> Transfer:
        """Answer as the gateway does once policy grants the read."""
        assert isinstance(message, LoadXCom)
        name = ObjectName.parse(message.object)
        access = Access("xcoms:read", "return_value", name.dag_id)
        answer = self.gateway.answer(StoredRead(message.region, name, "abroad", access))
        assert answer.status == 200, answer.body
        transfer = Transfer.model_validate_json(answer.body or "")
        self.granted.append(transfer.url)
        if len(self.granted) <= self.slow:
            time.sleep(SECONDS + 1.2)
        return transfer


@pytest.fixture
def bucket(worker: Worker, moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Expiring]:
    """The region's bucket, whose presigned URLs are valid for a second."""
    monkeypatch.setattr(xcoms, "URL_SECONDS", SECONDS)
    monkeypatch.setattr("airbridge.edge_worker._airflow.xcom_backend._PAUSE", 0.01)
    with expiring(moto.url) as made:
        assert worker.region.settings is not None
        settings = worker.region.settings.model_copy(update={"endpoint_url": made.url})
        worker.region = WorkerRegion(
            lambda known, name: connect(known.region, name, endpoint_url=known.endpoint_url)
        )
        worker.region.settings = settings
        yield made


def elsewhere(worker: Worker, made: Expiring, slow: int) -> Elsewhere:
    assert worker.region.settings is not None
    region = Region.model_validate(
        {
            "name": REGION,
            "log_bucket": worker.region.settings.log_bucket,
            "bundle_bucket": "dags",
            "endpoint_url": made.url,
            "pool": [{"name": "default", "queue_url": "http://queue.example/q"}],
        }
    )
    return Elsewhere(StoredXComs({REGION: region}), slow)


def reference_of(worker: Worker) -> Any:
    reference = push(VALUE)
    assert worker.objects()
    return reference


def test_reader_elsewhere_gets_a_fresh_url(
    worker: Worker, bucket: Expiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of another region whose URL expired before it used it asks the gateway again, and reads the value."""
    reference = reference_of(worker)
    reader = elsewhere(worker, bucket, slow=1)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", reader)
    bucket.requests.clear()
    assert pull(reference) == VALUE
    assert [valid for _, valid in bucket.requests] == [False, True]
    assert len(set(reader.granted)) == 2


def test_reader_whose_urls_all_expire_fails(
    worker: Worker, bucket: Expiring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal that a fresh URL does not help against fails the read after the second one, with no URL in its message."""
    reference = reference_of(worker)
    reader = elsewhere(worker, bucket, slow=9)
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", reader)
    with pytest.raises(XComTransferError, match="the bucket answered 403") as raised:
        pull(reference)
    assert len(reader.granted) == 2
    assert "Signature" not in str(raised.value)


def test_writer_gets_a_fresh_url(worker: Worker, bucket: Expiring, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that stood still before it wrote gets another URL, and the value is stored whole."""
    sent: list[object] = []

    def slow(message: StoreXCom | LoadXCom) -> Transfer:
        transfer = Worker.send(worker, message)
        sent.append(message)
        if len(sent) == 1:
            time.sleep(SECONDS + 1.2)
        return transfer

    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", replace(worker))
    monkeypatch.setattr(task_runner.SUPERVISOR_COMMS, "send", slow)
    reference = push(VALUE)
    assert [valid for _, valid in bucket.requests] == [False, True]
    assert pull(reference) == VALUE


@pytest.mark.parametrize(
    ("statuses", "error"),
    [
        ([403], ""),
        ([400], ""),
        ([503, 403, 500], ""),
        ([403, 503, 400], "answered 400"),
        ([403, 403], "answered 403"),
        ([404], "answered 404"),
    ],
)
def test_one_expired_url_is_forgiven(
    statuses: list[int], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer of a transfer may be that its URL has expired, at whichever try; any number may be of a bucket in trouble."""
    monkeypatch.setattr(xcom_backend, "_PAUSE", 0.0)
    left = [*statuses]

    def transfer(_: httpx.Client) -> str:
        if left:
            request = httpx.Request("GET", "http://bucket.example/key")
            httpx.Response(left.pop(0), request=request).raise_for_status()
        return "done"

    if error:
        with pytest.raises(XComTransferError, match=error):
            xcom_backend._try(transfer, "read")
        assert not left
    else:
        assert xcom_backend._try(transfer, "read") == "done"
