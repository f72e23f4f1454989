"""Values that stay in the region where they are made: XComs in its bucket, references in Airflow's database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.acceptance.dags.sovereign import CANARY
from tests.chaos import agent
from tests.chaos.fleet import Fleet, Worker
from tests.support.platform import LocalPlatform, running
from tests.support.weather import Network

from airbridge.control_plane.local.services.aws import parse_regions

pytestmark = pytest.mark.slow("make proof-sovereign")
SUITE = Path(__file__).parent / "dags" / "sovereign.py"
REGION = "eu-west-1"
GIB = 1024
RESIDENCY = """
[[region]]
name = "eu-west-1"
xcom_inline_bytes = 1024
"""
RULES = """
[[rule]]
name = "abroad"
dags = ["sovereign_abroad_allowed"]
regions = ["us-*"]
xcoms.from_regions = ["eu-west-1"]
"""


@dataclass(frozen=True)
class Sovereign:
    """A platform, and its workers by region, whose links to the gateway count what passes."""

    platform: LocalPlatform
    workers: dict[str, Worker]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sovereign]:
    """Two regions with a worker each, of which eu-west-1 stores XComs of more than 1 KiB."""
    folder = tmp_path_factory.mktemp("sovereign")
    residency, dags = folder / "residency.toml", folder / "dags"
    residency.write_text(RESIDENCY)
    dags.mkdir()
    (dags / SUITE.name).write_text(SUITE.read_text())
    regions = parse_regions(["us-east-1", REGION])
    with ExitStack() as stack:
        platform = stack.enter_context(
            running(residency=residency, dags=dags, regions=regions, workers_per_region=0)
        )
        policy = platform.directory.policy_file
        policy.write_text(policy.read_text().replace('xcoms.from_regions = ["*"]\n', "") + RULES)
        network = stack.enter_context(Network())
        workers = {}
        for region in ("us-east-1", REGION):
            fleet = Fleet(platform, network, environ={}, region=region)
            stack.callback(fleet.close)
            # Only the gateway is behind a link: nothing of a value is to pass there.
            direct = dict.fromkeys((agent.SQS_URL, agent.S3_URL), platform.state.aws_url)
            workers[region] = fleet.add(f"{region}-worker", "default", **direct)
            workers[region].start()
        for worker in workers.values():
            worker.wait_started()
        yield Sovereign(platform, workers)


@pytest.fixture
def sovereign(measured: Sovereign) -> LocalPlatform:
    """The platform alone."""
    return measured.platform


def stored(platform: LocalPlatform, dag_id: str, task_id: str) -> list[dict[str, object]]:
    """The references of a task's XComs, as they lie in the database."""
    rows = platform.query(
        "SELECT value FROM xcom WHERE dag_id = %s AND task_id = %s AND key = 'return_value' ORDER BY map_index",
        dag_id,
        task_id,
    )
    return [row[0]["__data__"] for row in rows]


def test_values_stay_in_region(sovereign: LocalPlatform) -> None:
    """A list, a mapped expansion over it and its results are read by the tasks of the region; the database has references alone."""
    run = sovereign.run("sovereign_values")
    assert run.state == "success", run.states()
    assert sovereign.xcom(run, "use") == 1000
    assert sovereign.xcom(run, "total") == 4 * 20 * (4 + len(CANARY))
    assert sovereign.xcom(run, "gather") == ["0000", "0001", "0002", "0003"]
    assert sovereign.xcom(run, "small") == "travels"
    assert len(run.states()) == 14
    [found] = stored(sovereign, run.dag_id, "make")
    assert (found["region"], found["preview"]) == ("eu-west-1", "")
    assert len(stored(sovereign, run.dag_id, "echo")) == 4
    # What the REST API and the UI show says what it is.
    assert "StoredXCom" in json.dumps(sovereign.xcom(run, "make"))
    [(leaked,)] = sovereign.query("SELECT count(*) FROM xcom WHERE value::text LIKE %s", f"%{CANARY}%")
    assert leaked == 0
    body = sovereign.aws_client("s3", "eu-west-1").get_object(
        Bucket=bucket(sovereign), Key=str(found["object"])
    )
    assert len(json.load(body["Body"])) == 1000


def test_other_region_reads_by_rule(sovereign: LocalPlatform) -> None:
    """A task of another region reads the value by a rule that names the region; without one it fails, and the rule is named."""
    allowed = sovereign.trigger("sovereign_abroad_allowed")
    refused = sovereign.run("sovereign_abroad_refused")
    done = sovereign.finish("sovereign_abroad_allowed", allowed)
    assert done.states() == {("value", -1): "success", ("elsewhere", -1): "success"}
    assert refused.states() == {("value", -1): "success", ("elsewhere", -1): "failed"}
    assert "xcoms.from_regions" in sovereign.task_log(refused, "elsewhere")


def test_gibibyte_streams(measured: Sovereign, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of 1 GiB goes from task to task within tens of MiB of memory, and nothing of it through gateway or database."""
    platform, worker = measured.platform, measured.workers[REGION]
    rows = "SELECT coalesce(sum(length(value::text)), 0) FROM xcom"
    before, passed = platform.query(rows)[0][0], through_gateway(worker)
    run = platform.run("sovereign_file", {"mib": GIB}, timeout_seconds=400)
    assert run.state == "success", run.states()
    found = platform.xcom(run, "read")
    found = json.loads(found) if isinstance(found, str) else found
    passed = through_gateway(worker) - passed
    assert worker.process is not None
    peaks = {
        "reading task": found["peak_mib"],
        "worker's agent": peak_mib(worker.process.pid),
        "gateway": peak_mib(platform.gateway_pid),
    }
    with capsys.disabled():
        listed = ", ".join(f"{name} {mib} MiB" for name, mib in peaks.items())
        print(f"\n1 GiB from task to task: {passed} bytes through the gateway; peak memory: {listed}")
    assert found["bytes"] == GIB * 1024 * 1024
    assert passed < 1024 * 1024
    assert found["peak_mib"] < 400
    assert platform.query(rows)[0][0] - before < 2000


def through_gateway(worker: Worker) -> int:
    """Bytes that have passed between a worker and the gateway, in both directions."""
    return worker.gateway.counts["bytes up"] + worker.gateway.counts["bytes down"]


def peak_mib(pid: int) -> int:
    """Return the peak memory of a process."""
    [line] = [each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in each]
    return int(line.split()[1]) // 1024


def bucket(platform: LocalPlatform) -> str:
    """The log bucket of eu-west-1."""
    return next(
        each["Name"]
        for each in platform.aws_client("s3", "eu-west-1").list_buckets()["Buckets"]
        if "eu-west-1" in each["Name"] and "log" in each["Name"]
    )
