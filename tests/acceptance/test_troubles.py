"""Twelve troubles, planted in a running platform: `airbridge trace` and the dashboard's Timeline page both name the cause.

One platform for all, with three workers behind links that can be cut. The sentences are those of docs/how-to/troubleshoot.md.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from os import kill
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.witness import TASK, Witness, watching
from tests.chaos.fleet import ROOT, Fleet, Worker
from tests.support.platform import LocalPlatform, running, wait_for
from tests.support.weather import BLACK_HOLE, FAIR, REFUSE, Network

from airbridge.control_plane.local.services.aws import parse_regions

pytestmark = pytest.mark.timeout(300)

HOME = "us-east-1"
AWAY = "eu-west-1"
DAG_FILE = Path(__file__).parent / "dags" / "troubles.py"
NOW, OLD, FOREIGN = version("airbridge-edge-worker"), "0.0.9", "9.9.9"
CERTIFICATE_SECONDS = 90

MATRIX = f"""
schema = 1
[[compatible]]
control_plane = "=={NOW}"
worker = "=={NOW}"
protocol = [1]
airflow = "==3.0.4"
task_sdk = "==1.0.4"
python = ">=3.11,<3.13"
[[compatible]]
control_plane = "=={NOW}"
worker = "=={OLD}"
protocol = [1]
airflow = "==3.0.4"
task_sdk = "==1.0.4"
python = ">=3.11,<3.13"
verdict = "drain"
"""
POLICY = """
schema = 1
[[rule]]
name = "wanted"
dags = ["t_*"]
queues.claim = ["*"]
"""
LATE = """
from airflow.sdk import DAG, task

with DAG("t_late", schedule=None):
    @task(queue="us-east-1", retries=0)
    def work():
        pass

    work()
"""


@dataclass(frozen=True)
class Stage:
    """The platform, its workers, and the witness."""

    platform: LocalPlatform
    witness: Witness
    near: Worker
    """Two slots, in the home region's default pool."""
    far: Worker
    files: Path

    def release(self, name: str) -> Path:
        """The file that holding tasks wait for."""
        return self.files / name

    def start(self, dag_id: str, release: str = "never") -> str:
        """Start a run."""
        return self.platform.trigger(dag_id, {"release": str(self.release(release))})

    def running(self, dag_id: str, run_id: str) -> None:
        """Wait until its task runs."""
        self.platform.wait_task(dag_id, run_id, TASK, {"running"}, 120)

    def far_away(self, name: str) -> int:
        """Return the number of times that the far worker has logged an event."""
        return sum(event.get("event") == name for event in self.far.events())


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Run a platform with leases of seconds, certificates of 90 s, a pool without workers, and a worker of an old version."""
    folder = tmp_path_factory.mktemp("troubles")
    (folder / "compatibility.toml").write_text(MATRIX)
    settings = {
        "airbridge.compatibility_file": str(folder / "compatibility.toml"),
        "airbridge.heartbeat_interval": "1",
        "airbridge.lease_seconds": "5",
        "airbridge.reconcile_interval": "1",
        "airbridge.outbox_interval": "1",
        "airbridge.message_ttl": "300",
        "airbridge.certificate_lifetime": str(CERTIFICATE_SECONDS),
    }
    regions = parse_regions((f"{HOME}:default,nobody,far,old,foreign", AWAY))
    with Network() as network, running(regions=regions, workers_per_region=0, airflow=settings) as platform:
        platform.add_dag_file(DAG_FILE)
        platform.directory.policy_file.write_text(POLICY)
        fleet = Fleet(platform, network, WORKER)
        try:
            near, far = fleet.add("near-1", "default"), fleet.add("far-1", "far")
            old = fleet.add("old-1", "old", PYTHONPATH=path_with_version(folder, OLD))
            (old.home / "join.token").write_text(token_for_once(platform, "old"))
            foreign = fleet.add("foreign-1", "foreign", PYTHONPATH=path_with_version(folder, FOREIGN))
            for worker in fleet.workers:
                worker.start()
            near.wait_started()
            far.wait_started()
            assert foreign.process is not None
            foreign.process.wait(60)
            with watching(platform) as witness:
                yield Stage(platform, witness, near, far, folder)
        finally:
            fleet.close()


WORKER = {
    "AIRBRIDGE_WORKER_SLOTS": "2",
    "AIRBRIDGE_WORKER_HEARTBEAT_SECONDS": "1",
    "AIRBRIDGE_WORKER_POLL_SECONDS": "1",
    "AIRBRIDGE_WORKER_REQUEST_TIMEOUT_SECONDS": "3",
    "AIRBRIDGE_WORKER_RETRY_CAP_SECONDS": "1",
}


def path_with_version(folder: Path, runs: str) -> str:
    """A search path on which AirBridge's worker is of another version."""
    info = folder / f"says-{runs}" / f"airbridge_edge_worker-{runs}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.3\nName: airbridge-edge-worker\nVersion: {runs}\n")
    return f"{info.parent}:{ROOT}"


def token_for_once(platform: LocalPlatform, pool: str) -> str:
    """A join token that is used up by one enrolment: its worker cannot enrol when renewing fails it."""
    asked = {"kind": "join", "region": HOME, "pool": pool, "uses": 1}
    with platform.operator() as operator:
        answer = operator.post("/operator/v1/tokens", json={"token": asked}).raise_for_status()
        return str(answer.json()["token"])


# --- No worker to run it


def test_no_worker(stage: Stage) -> None:
    """A pool without workers."""
    stage.start("t_nobody")
    stage.witness.names("t_nobody", "no_worker", r"^queued \d+ s: pool nobody@us-east-1 has 0 workers$")


def test_workers_full(stage: Stage) -> None:
    """Every slot is taken by a task that runs long."""
    run_id = stage.start("t_full", "full")
    stage.running("t_full", run_id)
    stage.start("t_waits")
    stage.witness.names(
        "t_waits", "workers_full", r"all 2 slots of 1 worker in us-east-1 are taken; nothing waits before it"
    )
    stage.release("full").touch()
    stage.witness.names("t_waits", "ended", r"^ended on near-1 in us-east-1 as success")


def test_drain_only_worker(stage: Stage) -> None:
    """The pool's worker enrolled with a version that is being retired."""
    stage.start("t_old")
    said = r"pool old@us-east-1 has 0 workers that the matrix allows; 1 is on 0\.0\.9, drain only \("
    stage.witness.names("t_old", "parity", said)


def test_a_worker_that_the_matrix_refuses(stage: Stage) -> None:
    """The pool's only worker tried to enrol with a version outside the matrix, and was refused."""
    stage.start("t_foreign")
    said = (
        r"pool foreign@us-east-1 has 0 workers; foreign-1 on 9\.9\.9 was refused by the matrix \d+ s ago \("
    )
    stage.witness.names("t_foreign", "parity", said)


# --- The queue


def test_queue_unreachable(stage: Stage) -> None:
    """The region's queue has been deleted: the scheduler cannot send to it."""
    sqs = stage.platform.aws_client("sqs", AWAY)
    sqs.delete_queue(QueueUrl=queue_url(sqs, "eu-west-1-default"))
    stage.start("t_deaf")
    stage.witness.names(
        "t_deaf", "queue_unreachable", r"the queue of eu-west-1 did not take it: .*NonExistentQueue"
    )


def test_poison_message(stage: Stage) -> None:
    """A message that was changed on the queue; before that, the worker is cut off from the queue, which is named too.

    Garbage beside it is no task's, but an event.
    """
    stage.near.sqs.set(REFUSE)
    time.sleep(1.5)  # a poll that was under way is over: it would take the message to nowhere
    stage.start("t_poisoned")
    stage.witness.names(
        "t_poisoned", "queue_unreachable", r"near-1 cannot receive from the queue of us-east-1: "
    )
    forge(stage.platform.aws_client("sqs", HOME))
    stage.near.sqs.set(FAIR)
    said = (
        r"near-1 rejected its message \(bad_signature: signature does not match key '\w+'\), "
        r"which goes to the dead-letter queue; a new message is sent in \d+ "
    )
    stage.witness.names("t_poisoned", "poison", said)
    rejected = {"source": "events", "event": "message.rejected"}
    wait_for(
        lambda: "malformed" in stage.witness.browser.get("/audit", params=rejected).text,
        "the garbage to be on the Audit page",
    )


def queue_url(sqs: Any, name: str) -> str:
    """A queue's URL."""
    return str(sqs.get_queue_url(QueueName=f"airbridge-local-{name}")["QueueUrl"])


def forge(sqs: Any) -> None:
    """Put garbage and a changed message in place of the one that waits."""
    url = queue_url(sqs, "us-east-1-default")
    [message] = sqs.receive_message(QueueUrl=url, WaitTimeSeconds=10)["Messages"]
    envelope = json.loads(message["Body"])
    item = json.loads(base64.urlsafe_b64decode(envelope["payload"] + "=="))
    changed = json.dumps({**item, "slots": 1_000}).encode()
    envelope["payload"] = base64.urlsafe_b64encode(changed).decode().rstrip("=")
    sqs.send_message(QueueUrl=url, MessageBody="garbage")
    sqs.send_message(QueueUrl=url, MessageBody=json.dumps(envelope))
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


def test_region_unknown(stage: Stage) -> None:
    """A task's queue names a region that is not in the catalogue."""
    stage.start("t_mars")
    stage.witness.names(
        "t_mars",
        "unknown_region",
        r"^not placed: queue 'mars' .*regions: us-east-1, eu-west-1.*Airflow has it as failed",
    )


# --- What it may not have


def test_policy_denial(stage: Stage) -> None:
    """A task reads a connection that no rule gives it, and fails."""
    stage.start("t_denied")
    stage.witness.names(
        "t_denied",
        "policy_denial",
        r"^failed after a call was denied: GET connections/warehouse \(policy: .*Airflow has it as failed",
    )


def test_policy_denies_the_claim(stage: Stage) -> None:
    """No rule lets workers of the pool take the task."""
    stage.start("unwanted")
    stage.witness.names(
        "unwanted",
        "policy_denial",
        r"near-1 may not claim it: policy: DAG 'unwanted' in default@us-east-1 may not",
    )


def test_missing_bundle(stage: Stage) -> None:
    """The run's DAG code is taken out of the region's bucket before any worker has fetched it."""
    platform = stage.platform
    platform.add_dag("late", LATE)
    platform.airflow.wait_for_dag("t_late")
    with without_newest_snapshot(platform.aws_client("s3", HOME)):
        stage.start("t_late")
        stage.witness.names("t_late", "missing_bundle", r"DAG code dags sha256:\w+")
        stage.witness.names(
            "t_late", "missing_bundle", r"^failed: DAG code dags sha256:\w+: .*Airflow has it as failed"
        )


@contextmanager
def without_newest_snapshot(s3: Any) -> Iterator[None]:
    """Take the last published snapshot out of the home region's bucket for a while: other runs are of it, too."""
    bucket = f"airbridge-local-{HOME}-dags"
    objects = s3.list_objects_v2(Bucket=bucket, Prefix="bundles/dags/")["Contents"]
    archives = [each for each in objects if each["Key"].endswith(".tar.gz")]
    newest = {"Bucket": bucket, "Key": max(archives, key=lambda each: each["LastModified"])["Key"]}
    content = s3.get_object(**newest)["Body"].read()
    s3.delete_object(**newest)
    try:
        yield
    finally:
        s3.put_object(**newest, Body=content)


# --- Cut off


def test_certificate_about_to_end(stage: Stage) -> None:
    """The certificate of the pool's worker is not renewed: its join token is used up."""
    if stage.witness.page("t_old") is None:
        stage.start("t_old")
    stage.witness.notes(
        "t_old",
        "certificate",
        r"the certificate of old-1 expire(s in|d) \d+ (s|min).* and has not been renewed",
    )


def test_partition_and_fence(stage: Stage) -> None:
    """A worker with two tasks is cut off: one is waited for, the other, less patient, is fenced off, and its result refused."""
    witness = stage.witness
    for dag_id in ("t_cut", "t_fenced"):
        stage.start(dag_id, "cut")
    wait_for(lambda: stage.far_away("task.started") == 2, "both tasks to run")
    stage.far.set(BLACK_HOLE)
    witness.names(
        "t_cut",
        "partition",
        r"^held by far-1 in us-east-1, no heartbeat for \d+ s: disconnected or dead; its lease ran out \d+ s ago, it is fenced off in \d+ min$",
    )
    witness.names(
        "t_fenced", "fenced", r"^fenced off: lost: worker far-1 in us-east-1 sent no heartbeat for 10 s "
    )
    stage.release("cut").touch()
    wait_for(lambda: stage.far_away("task.ended") == 2, "both tasks to end in the cut")
    stage.far.set(FAIR)
    witness.names(
        "t_fenced", "fenced", r"; what its worker reported later was refused; Airflow has it as failed"
    )
    witness.names("t_cut", "ended", r"^ended on far-1 in us-east-1 as success; Airflow has it as success")


def test_gateway_down(stage: Stage) -> None:
    """With the gateway killed the command reads the database, and prints that it does.

    Given only the gateway's address, it prints the fault and the remedy.
    """
    stage.start("t_nobody")
    supervisor = stage.platform.state.pid
    kill(supervisor, signal.SIGSTOP)
    try:
        stage.platform.kill("gateway")
        stage.witness.names(
            "t_nobody",
            "gateway_down",
            r"^queued \d+ s: no gateway has run for \d+ s: workers cannot claim$",
        )
        assert "the gateway does not answer" in stage.witness.trace("t_nobody")[1]
        elsewhere = {
            "--url": stage.platform.state.operator_url,
            "--token-file": str(stage.platform.directory.operator_token_file),
            "--ca-file": str(stage.platform.directory.ca_file),
        }
        refused = stage.witness.run("trace", "t_nobody", "latest", TASK, *chain(*elsewhere.items()))
        assert refused.returncode != 0
        assert re.search(r"does not answer: .*; start a gateway, or .*--database", refused.stderr), (
            refused.stderr
        )
    finally:
        kill(supervisor, signal.SIGCONT)
    stage.platform.wait_ready(120)
    stage.witness.names("t_nobody", "no_worker", r"has 0 workers$")
