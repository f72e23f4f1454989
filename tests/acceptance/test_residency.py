"""Secrets of a region and a strict region: each region reads its own, and nothing of either is anywhere in the control plane."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from tests.support import canaries
from tests.support.canaries import Home
from tests.support.collector import Collector, collecting
from tests.support.platform import LocalPlatform, Run, running

pytestmark = pytest.mark.slow("make proof-sovereign")
SUITE = Path(__file__).parent / "dags" / "residents.py"
BACKEND = "airbridge.edge_worker._airflow.aws_secrets.SecretsManager"
RESIDENCY = f"""
[[region]]
name = "us-east-1"
[[region.pool]]
secrets_backend = "{BACKEND}"
secrets_backend_kwargs = {{ region_name = "us-east-1" }}
[[region]]
name = "eu-west-1"
residency = "strict"
[[region.pool]]
secrets_backend = "{BACKEND}"
secrets_backend_kwargs = {{ region_name = "eu-west-1" }}
"""
RULES = """
[[residency]]
name = "warehouses"
connections = ["warehouse"]
variables = ["canaries"]
where = "region"
[[residency]]
name = "american"
connections = ["us_only"]
where = ["us-east-1"]
"""
TEXTS = (
    "print",
    "log",
    "xcom",
    "exception",
    "variable",
    "map_index",
    "asset",
    "rendered",
    "conf",
    "trigger",
    "next",
)
SECRETS = ("eu_password", "eu_key", "us_password", "us_key", "us_only")


@dataclass(frozen=True)
class World:
    """The platform after its runs, and what was planted."""

    platform: LocalPlatform
    home: Home
    planted: dict[str, str]
    read: Run
    leak: Run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two regions with secrets of their own, of which eu-west-1 is strict; all TLS traffic is recorded, decrypted."""
    folder = tmp_path_factory.mktemp("residency")
    # Processes may run as other users.
    for each in (folder, *folder.parents[:3]):
        each.chmod(0o755)
    residency, dags, tapped = folder / "residency.toml", folder / "dags", canaries.tap(folder / "tapping")
    (tapped / "tap").chmod(0o777)
    residency.write_text(RESIDENCY)
    dags.mkdir()
    (dags / SUITE.name).write_text(SUITE.read_text())
    planted = canaries.plant((*TEXTS, *SECRETS))
    with pytest.MonkeyPatch.context() as patch, collecting() as collector:
        patch.setenv("PYTHONPATH", str(tapped))
        settings = {"airbridge.traces_endpoint": collector.endpoint}
        with running(residency=residency, dags=dags, airflow=settings) as platform:
            yield _after_runs(platform, tapped, collector, planted)
            # The emulator writes its recording to the directory in which the platform was started.
            Path("moto_recording").unlink(missing_ok=True)


def _after_runs(
    platform: LocalPlatform, tapped: Path, collector: Collector, planted: dict[str, str]
) -> World:
    httpx.post(f"{platform.state.aws_url}/moto-api/recorder/start-recording").raise_for_status()
    policy = platform.directory.policy_file
    policy.write_text(policy.read_text() + RULES)
    for name, region in (("eu", "eu-west-1"), ("us", "us-east-1")):
        put(platform, region, "connections/warehouse", connection(planted, name))
    put(platform, "us-east-1", "connections/us_only", {"conn_type": "http", "password": planted["us_only"]})
    put(platform, "eu-west-1", "variables/canaries", {name: planted[name] for name in TEXTS})
    platform.airflow._request(
        "POST",
        "/api/v2/connections",
        {"connection_id": "central", "conn_type": "http", "host": "central.example"},
    )
    digests = {
        name: hashlib.sha256(planted[f"{name}_password"].encode()).hexdigest() for name in ("eu", "us")
    }
    leak = platform.run("residents_leak", timeout_seconds=300)
    read = platform.run("residents_read", digests)
    return World(platform, Home(platform, tapped, spans=collector.spans.values()), planted, read, leak)


def connection(planted: dict[str, str], name: str) -> dict[str, object]:
    return {
        "conn_type": "http",
        "host": f"{name}.example",
        "password": planted[f"{name}_password"],
        "extra": {"key": planted[f"{name}_key"]},
    }


def put(platform: LocalPlatform, region: str, name: str, value: dict[str, object] | dict[str, str]) -> None:
    client = platform.aws_client("secretsmanager", region)
    client.create_secret(Name=f"airflow/{name}", SecretString=json.dumps(value))


def regional_log(platform: LocalPlatform, region: str) -> str:
    """All task logs of a region's bucket."""
    s3 = platform.aws_client("s3", region)
    names = [
        each["Name"]
        for each in s3.list_buckets()["Buckets"]
        if region in each["Name"] and "log" in each["Name"]
    ]
    keys = [
        (name, each["Key"])
        for name in names
        for each in s3.list_objects_v2(Bucket=name, Prefix="logs/").get("Contents", ())
    ]
    return "\n".join(s3.get_object(Bucket=name, Key=key)["Body"].read().decode() for name, key in keys)


def test_each_region_reads_its_own(world: World) -> None:
    """The same connection id gives each region's own value; what is the control plane's is still read from there."""
    states = world.read.states()
    assert (states["eu_reads", -1], states["us_reads", -1]) == ("success", "success")
    assert world.platform.xcom(world.read, "us_reads_home") == "central.example"
    assert world.platform.query("SELECT count(*) FROM connection WHERE conn_id = 'warehouse'") == [(0,)]


def test_secret_of_other_region_is_refused(world: World) -> None:
    """A task that asks for another region's secret fails, and the rule is named in its log and in the audit trail."""
    assert world.read.states()["eu_reads_of_us", -1] == "failed"
    assert "residency rule 'american' keeps 'us_only' in us-east-1" in regional_log(
        world.platform, "eu-west-1"
    )
    rows = world.platform.query(
        "SELECT rule FROM airbridge_audit WHERE event = 'call.denied' AND rule LIKE 'residency: american'"
    )
    assert rows


def test_reads_are_in_audit_trail(world: World) -> None:
    """The trail names the connection and the backend, and has no value."""
    rows = world.platform.query(
        "SELECT detail FROM airbridge_audit WHERE event = 'secret.read' AND detail->>'name' = 'warehouse'"
    )
    assert {row[0]["backend"] for row in rows} == {BACKEND}
    assert len(rows) >= 2


def test_strict_region_refuses_what_would_leave(world: World) -> None:
    """Values stay and are used in the region; what has no way of staying is refused, with the reason in the task's log."""
    states = {task: state for (task, _), state in world.leak.states().items()}
    # `Variable.set` logs that it was refused, and does not fail: Airflow's.
    used = dict.fromkeys(("speak", "listen", "render", "mapped", "write"), "success")
    refused = dict.fromkeys(("fail", "change", "start", "defer", "defer_with_data"), "failed")
    assert states == used | refused
    text = regional_log(world.platform, "eu-west-1")
    for name in ("print", "log", "exception", "rendered"):
        assert world.planted[name] in text, name
    assert "residency: a variable's value; the region's residency is strict" in text
    assert world.platform.query("SELECT count(*) FROM variable") == [(0,)]
    shown = world.platform.task_log(world.leak, "defer")
    assert "a deferral: its trigger, with its kwargs, would be kept in the control plane" in shown


def test_secrets_are_masked_in_their_region(world: World) -> None:
    """A task that prints its password has asterisks in the region's own log."""
    for region, name in (("eu-west-1", "eu"), ("us-east-1", "us")):
        text = regional_log(world.platform, region)
        assert "the password is ***" in text
        assert world.planted[f"{name}_password"] not in text
        assert world.planted[f"{name}_key"] not in text


def test_log_is_withheld_in_ui(world: World) -> None:
    """The UI says where the log lies, and shows none of it; of an open region it shows the log."""
    shown = world.platform.task_log(world.leak, "speak")
    assert "whose residency is strict: s3://" in shown
    assert world.planted["print"] not in shown
    assert "the password is ***" in world.platform.task_log(world.read, "us_reads")


def test_no_canary_is_at_home(world: World) -> None:
    """No canary is in the database, in the gateway's decrypted traffic, in queues, home buckets, logs, traces or pages."""
    sources = list(world.home.sources())
    kinds = {place.split(":")[0] for place, data in sources if data}
    assert kinds >= {"database", "gateway traffic", "queues", "s3", "logs", "traces", "page"}, kinds
    assert any(b"/edge/v1/exchange" in data for place, data in sources if place.startswith("gateway"))
    assert canaries.scan(sources, world.planted) == []


def test_scan_finds_leaks(world: World) -> None:
    """Each kind of source is searched: a canary that is put there on purpose is found there."""
    platform, leaked = world.platform, canaries.plant(("leak",))
    text = leaked["leak"]
    platform.query(
        "UPDATE xcom SET value = to_jsonb(%s::text) WHERE dag_id = 'residents_read' AND task_id = 'us_reads' RETURNING key",
        text,
    )
    s3 = platform.aws_client("s3", "us-east-1")
    bucket = next(each["Name"] for each in s3.list_buckets()["Buckets"] if "us-east-1" in each["Name"])
    s3.put_object(Bucket=bucket, Key="leak", Body=gzip.compress(text.encode()))
    with platform.directory.log("scheduler").open("a") as log:
        log.write(text.encode().hex())
    sqs = platform.aws_client("sqs", "us-east-1")
    sqs.send_message(QueueUrl=sqs.list_queues()["QueueUrls"][0], MessageBody=text)
    with platform.operator() as operator:
        operator.get("/operator/v1/status", params={"x": text})
    home = Home(platform, world.home.tapped, spans=[text])
    found = {hit.place.split(":")[0] for hit in canaries.scan(home.sources(), leaked)}
    assert found >= {"database", "gateway traffic", "queues", "s3", "logs", "traces", "page"}
