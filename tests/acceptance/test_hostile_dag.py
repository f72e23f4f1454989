"""A hostile DAG on the real platform: what user code at the edge tries against the worker, other tasks and the gateway."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.runner.attacks import HEAD
from tests.support.platform import LocalPlatform, wait_for

from airbridge.core.sandbox import landlock

pytestmark = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")

REGION = "us-east-1"
WORKER = f"{REGION}-default-1"

VICTIM = """
import time
from pathlib import Path
from airflow.sdk import DAG, task
from airbridge.core import near

with DAG("victim", schedule=None):
    @task(executor_config=near("region:us-east-1"))
    def holds():
        Path("notes").write_text("mine")
        time.sleep(90)
    holds()
"""

ATTACKER = '''
import json, ssl, urllib.error, urllib.request
from airbridge.core import near


GATEWAY, CA, OTHER = {gateway!r}, {ca!r}, {other!r}

def status_of(path, body):
    """What the gateway answers somebody with no certificate and the token of his fancy."""
    request = urllib.request.Request(
        GATEWAY + "/edge/v1/" + path,
        json.dumps(body).encode(),
        {{"AirBridge-Protocol": "1", "Authorization": "Bearer a.b.c", "Content-Type": "application/json"}},
    )
    context = ssl.create_default_context(cadata=CA)
    try:
        return urllib.request.urlopen(request, context=context, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code

def on_gateway():
    now = "2026-01-01T00:00:00Z"
    record = {{**OTHER, "seq": 1, "method": "PATCH", "path": "task-instances/x/state", "body": "{{}}", "recorded_at": now}}
    versions = {{"airbridge": "0.1.0", "airflow": "3.0.4", "task_sdk": "1.0.4", "python": "3.11"}}
    beat = {{"sent_at": now, "versions": versions, "slots_total": 1, "slots_used": 0, "leases": [OTHER]}}
    join = {{"method": "token", "token": "guessed"}}
    enrol = {{"region": "us-east-1", "pool": "default", "worker": "evil", "csr_pem": "x", "join": join, "versions": versions}}
    return {{
        "claim": status_of("claim", {{"envelopes": ["x"]}}),
        "heartbeat": status_of("heartbeat", beat),
        "exchange": status_of("exchange", {{"records": [record]}}),
        "release": status_of("release", {{"items": [OTHER]}}),
        "renew": status_of("renew", {{"csr_pem": "x", "versions": versions}}),
        "enrol": status_of("enrol", enrol),
    }}

def through_the_supervisor(victim):
    """Send requests in another task's name to the supervisor, and so to the execution API proxy."""
    from airflow.sdk.api.datamodels._generated import TaskInstanceState
    from airflow.sdk.execution_time.comms import GetConnection, GetVariable, GetXCom, SetXCom
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    tried = {{}}
    def attempt(name, message):
        try:
            answer = SUPERVISOR_COMMS.send(message)
            tried[name] = type(answer).__name__
        except Exception as error:
            tried[name] = f"denied {{type(error).__name__}}"
    attempt("set another's XCom", SetXCom(key="stolen", value=1, dag_id=victim["dag_id"], run_id=victim["run_id"], task_id=victim["task_id"]))
    attempt("read another team's connection", GetConnection(conn_id="other_team"))
    attempt("read another team's variable", GetVariable(key="other_team"))
    attempt("read another's XCom", GetXCom(key="return_value", dag_id=victim["dag_id"], run_id=victim["run_id"], task_id=victim["task_id"]))
    return tried

with DAG("hostile", schedule=None):
    @task(executor_config=near("region:us-east-1"))
    def attacks(**context):
        target = {target!r}
        # A child of the worker can have ended since it was listed.
        pids = [pid for pid in [*ancestors()[:4], *target["pids"]] if Path(f"/proc/{{pid}}/comm").exists()]
        processes = {{f"{{pid}} {{Path(f'/proc/{{pid}}/comm').read_text().strip()}}": on_process(pid) for pid in pids}}
        files = {{name: on_file(name) for name in target["files"]}}
        environment = [name for name in os.environ if "TOKEN" in name or "SECRET_KEY" in name.upper() or name.startswith("AIRBRIDGE_")]
        context["ti"].xcom_push(key="found", value={{
            "processes": got_through(processes),
            "files": got_through(files),
            "tried": len(processes) + len(files),
            "environment": environment,
            "gateway": on_gateway(),
            "proxy": through_the_supervisor(target["task"]),
        }})
    attacks()
'''


def victim_on(platform: LocalPlatform) -> dict[str, Any]:
    """Start the victim; return what an attacker on its host could know of it."""
    platform.add_dag("victim", VICTIM)
    run_id = platform.trigger("victim")
    platform.wait_task("victim", run_id, "holds", {"running"})
    state = platform.worker_home(WORKER) / "state"
    deadline = time.monotonic() + 30
    while not (notes := list(state.glob("t/*/*/notes"))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    [(item_id, epoch)] = platform.query(
        "SELECT id, epoch FROM airbridge_work_item WHERE dag_id = 'victim' AND run_id = %s", run_id
    )
    directory = platform.directory
    return {
        "item": {"item_id": str(item_id), "epoch": epoch},
        "task": {"dag_id": "victim", "run_id": run_id, "task_id": "holds"},
        "pids": [
            platform.worker_pids()[WORKER],
            platform.gateway_pid,
            *_children(platform.worker_pids()[WORKER]),
        ],
        "files": [
            str(path)
            for path in (
                *(
                    state / name
                    for name in ("journal.sqlite", "journal.sqlite-wal", "status.sock", "logs", "t")
                ),
                *state.glob("logs/*.log"),
                notes[0],
                directory.join_token_file(WORKER),
                directory.keys_file,
                directory.operator_token_file,
                directory.secrets / "ca.key",
                directory.worker("eu-west-1-default-1") / "state",
            )
        ],
    }


def _children(pid: int) -> list[int]:
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], check=False, capture_output=True, text=True
    ).stdout.split()
    return [int(child) for child in found] + [more for child in found for more in _children(int(child))]


@pytest.fixture
def strict(platform: LocalPlatform) -> Iterator[LocalPlatform]:
    """The platform with something to steal, and a policy that allows the victim's DAG alone."""
    airflow, file = platform.airflow, platform.directory.policy_file
    secret = {"connection_id": "other_team", "conn_type": "http", "password": "not-yours"}
    airflow._json("POST", "/api/v2/connections", secret)
    airflow._json("POST", "/api/v2/variables", {"key": "other_team", "value": "not-yours"})
    before = file.read_text()
    may_run = '\n[[rule]]\nname = "all-run"\ndags = ["*"]\nqueues.claim = ["*"]\n'
    file.write_text(before.replace('dags = ["*"]', 'dags = ["victim"]') + may_run)
    wait_for(lambda: _events(platform, "policy.%") > 1, "the gateway to take up the policy")
    yield platform
    taken = _events(platform, "policy.%")
    file.write_text(before)
    wait_for(lambda: _events(platform, "policy.%") > taken, "the gateway to take up the policy of before")
    for path in ("/api/v2/connections/other_team", "/api/v2/variables/other_team"):
        airflow._request("DELETE", path).raise_for_status()


def test_a_hostile_dag_gets_nowhere(strict: LocalPlatform) -> None:
    """Key, token, journal, other tasks' files and memory are closed; without a certificate the gateway answers 401 to
    every endpoint and 403 to a guessed join token, and audits each; the proxy refuses writes in another's name, and
    the gateway what the policy does not allow."""
    platform = strict
    target = victim_on(platform)
    denied = _events(platform, "call.denied")
    before = _refusals(platform)
    platform.add_dag(
        "hostile",
        HEAD
        + ATTACKER.format(
            gateway=platform.component("gateway").url,
            ca=platform.directory.ca_file.read_text(),
            other=target["item"],
            target=target,
        ),
    )
    run = platform.run("hostile")
    assert run.state == "success", platform.task_log(run, "attacks")
    found = platform.xcom(run, "attacks", "found")
    found = json.loads(found) if isinstance(found, str) else found
    assert found["tried"] > 12
    assert (found["processes"], found["files"], found["environment"]) == ([], [], [])
    endpoints = dict.fromkeys(("claim", "heartbeat", "exchange", "release", "renew"), 401)
    assert found["gateway"] == {**endpoints, "enrol": 403}
    assert _refusals(platform) - before >= 6
    assert all(answer.startswith(("denied", "ErrorResponse")) for answer in found["proxy"].values()), found[
        "proxy"
    ]
    assert len(found["proxy"]) == 4
    wait_for(lambda: _events(platform, "call.denied") - denied >= 3, "the denials to be audited")
    [(stolen,)] = platform.query("SELECT count(*) FROM xcom WHERE dag_id = 'victim' AND key = 'stolen'")
    assert stolen == 0


def _events(platform: LocalPlatform, pattern: str) -> int:
    return int(platform.query("SELECT count(*) FROM airbridge_audit WHERE event LIKE %s", pattern)[0][0])


def _refusals(platform: LocalPlatform) -> int:
    time.sleep(1.5)  # denials are written in batches
    return int(
        platform.query(
            "SELECT count(*) FROM airbridge_audit WHERE event IN ('request.refused', 'enrolment.refused')"
        )[0][0]
    )
