"""Values that stay in the region where they are made: XComs in its bucket, references in Airflow's database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.dags.sovereign import CANARY
from tests.support.platform import LocalPlatform, running

pytestmark = pytest.mark.slow("make proof-sovereign")
SUITE = Path(__file__).parent / "dags" / "sovereign.py"
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


@pytest.fixture(scope="module")
def sovereign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """Two regions, of which eu-west-1 stores XComs of more than 1 KiB."""
    folder = tmp_path_factory.mktemp("sovereign")
    residency, dags = folder / "residency.toml", folder / "dags"
    residency.write_text(RESIDENCY)
    dags.mkdir()
    (dags / SUITE.name).write_text(SUITE.read_text())
    with running(residency=residency, dags=dags) as platform:
        policy = platform.directory.policy_file
        policy.write_text(policy.read_text().replace('xcoms.from_regions = ["*"]\n', "") + RULES)
        yield platform


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


def test_gibibyte_streams(sovereign: LocalPlatform) -> None:
    """A file of 1 GiB goes from task to task within tens of MiB of memory, and nothing of it through the gateway."""
    before = sovereign.query("SELECT coalesce(sum(length(value::text)), 0) FROM xcom")[0][0]
    run = sovereign.run("sovereign_file", {"mib": GIB}, timeout_seconds=400)
    assert run.state == "success", run.states()
    found = sovereign.xcom(run, "read")
    found = json.loads(found) if isinstance(found, str) else found
    print(f"1 GiB: {found}, written by a task of {sovereign.xcom(run, 'write', 'before')} MiB")
    assert found["bytes"] == GIB * 1024 * 1024
    assert found["peak_mib"] < 400
    after = sovereign.query("SELECT coalesce(sum(length(value::text)), 0) FROM xcom")[0][0]
    assert after - before < 2000


def bucket(platform: LocalPlatform) -> str:
    """The log bucket of eu-west-1."""
    return next(
        each["Name"]
        for each in platform.aws_client("s3", "eu-west-1").list_buckets()["Buckets"]
        if "eu-west-1" in each["Name"] and "log" in each["Name"]
    )
