"""The doctor's checks of a region's queue and buckets, on moto."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from tests.support.moto import Moto

from airbridge.core.protocol import RegionSettings
from airbridge.edge_worker.gateway_client.region import REGION_META
from airbridge.edge_worker.journal.file import JournalFile
from airbridge.edge_worker.journal.rows import SetMeta
from airbridge.edge_worker.ops import region_checks
from airbridge.edge_worker.settings import WorkerSettings, load

REGION = "eu-west-1"


@pytest.fixture
def worker(tmp_path: Path, moto: Moto, monkeypatch: pytest.MonkeyPatch) -> WorkerSettings:
    """Settings of a worker whose journal has a region with a queue and both buckets."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, moto.environment[name])
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    suffix = uuid4().hex[:12]
    queue = moto.client("sqs", REGION).create_queue(QueueName=f"work-{suffix}")["QueueUrl"]
    known = RegionSettings(
        region=REGION,
        pool="default",
        queue_url=queue,
        log_bucket=moto.bucket(f"logs-{suffix}", REGION),
        bundle_bucket=moto.bucket(f"dags-{suffix}", REGION),
        endpoint_url=moto.url,
    )
    settings = load(
        None,
        gateway_url="https://gateway",
        region=REGION,
        name="worker-1",
        state_dir=tmp_path / "state",
        join_token_file="/j",
        ca_file="/ca",
    )
    write(settings, known)
    return settings


def write(settings: WorkerSettings, known: RegionSettings) -> None:
    journal, _ = JournalFile.open(settings.journal_file, now=datetime.now(UTC), fsync=False)
    journal.apply([SetMeta(REGION_META, known.model_dump_json())])
    journal.close()


def known(settings: WorkerSettings) -> RegionSettings:
    found = region_checks.known_region(settings)
    assert found is not None
    return found


def results(settings: WorkerSettings) -> dict[str, tuple[bool, str]]:
    return {each.check: (each.ok, each.detail) for each in region_checks.check(settings)}


def test_reachable_region_passes(worker: WorkerSettings, moto: Moto) -> None:
    """Queue and buckets are used as the worker uses them, and nothing is left or taken there."""
    region = known(worker)
    sqs = moto.client("sqs", REGION)
    sqs.send_message(QueueUrl=region.queue_url, MessageBody="work")
    assert {"queue": True, "DAG code": True, "logs": True} == {
        name: ok for name, (ok, _) in results(worker).items()
    }
    [message] = sqs.receive_message(
        QueueUrl=region.queue_url, MessageSystemAttributeNames=["ApproximateReceiveCount"]
    )["Messages"]
    assert "1" == message["Attributes"]["ApproximateReceiveCount"]
    assert 0 == moto.client("s3", REGION).list_objects_v2(Bucket=region.log_bucket)["KeyCount"]


def test_missing_queue_and_buckets_are_named(worker: WorkerSettings) -> None:
    """Each check that fails names the queue or bucket, and what AWS said."""
    gone = known(worker).model_copy(
        update={
            "queue_url": known(worker).queue_url + "-gone",
            "log_bucket": "no-logs-here",
            "bundle_bucket": "no-dags-here",
        }
    )
    write(worker, gone)
    found = results(worker)
    assert [False, False, False] == [ok for ok, _ in found.values()]
    assert "-gone" in found["queue"][1]
    assert "no-dags-here" in found["DAG code"][1]
    assert "no-logs-here" in found["logs"][1]


def test_missing_credentials_are_named(worker: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without credentials fails each check with the reason, before its worker would."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    found = results(worker)
    assert [False, False, False] == [ok for ok, _ in found.values()]
    assert all("Unable to locate credentials" in detail for _, detail in found.values())


def test_unknown_region_is_no_failure(tmp_path: Path, worker: WorkerSettings) -> None:
    """Before the first enrolment there is nothing to check, which is said."""
    new = worker.model_copy(update={"state_dir": tmp_path / "new"})
    assert {"queue": (True, "not known before the first enrolment")} == results(new)
