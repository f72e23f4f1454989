"""A worker in a network that reaches nothing but the gateway's one port: it joins by its own key, and needs no AWS credential."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.acceptance.test_features import OUTCOMES, SECRET, SUITE, TRIGGERED
from tests.boot.wires import Namespace, Wire, command, forwarding, ip, is_root, namespace
from tests.support.platform import BOTH_EXECUTORS, LocalPlatform, running, wait_for

from airbridge.control_plane.local.services.aws import CREDENTIALS, parse_regions

pytestmark = [
    pytest.mark.slow("make proof-anywhere"),
    pytest.mark.skipif(not is_root(), reason="needs root and ip(8)"),
    pytest.mark.timeout(1500),
]
DAGS = Path(__file__).parent / "dags" / "anywhere.py"
CUT_SECONDS = 60
LONG_CUT_SECONDS = 600
PLACE = "factory-7"


@dataclass
class Factory:
    """A host in a network of its own. Its gateway's address is on its loopback, and leads to the gateway's port."""

    platform: LocalPlatform
    space: Namespace
    folder: Path
    name: str = "press-1"
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def port(self) -> int:
        port = urlsplit(self.platform.state.gateway_url).port
        assert port is not None
        return port

    def environment(self, state: Path) -> dict[str, str]:
        """Everything that the host has: no variable of AWS, and no token."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "AIRBRIDGE_WORKER_GATEWAY_URL": f"https://127.0.0.1:{self.port}",
            "AIRBRIDGE_WORKER_CA_FILE": str(self.folder / "ca.crt"),
            "AIRBRIDGE_WORKER_REGION": PLACE,
            "AIRBRIDGE_WORKER_NAME": self.name,
            "AIRBRIDGE_WORKER_STATE_DIR": str(state),
            "AIRBRIDGE_WORKER_JOIN_METHOD": "bound_key",
            "AIRBRIDGE_WORKER_LOG_CHUNK_SECONDS": "1",
            "AIRBRIDGE_WORKER_RETRY_CAP_SECONDS": "2",
        }

    def command(self, *words: str, state: Path | None = None) -> list[str]:
        variables = [f"{name}={value}" for name, value in self.environment(state or self.state).items()]
        worker = str(Path(sys.executable).with_name("airbridge-worker"))
        return ["ip", "netns", "exec", self.space.name, "env", "-i", *variables, worker, *words]

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def ask(self, *words: str) -> str:
        """Run a command of the worker on the host."""
        return subprocess.run(self.command(*words), check=True, capture_output=True, text=True).stdout.strip()

    def start(self, state: Path | None = None) -> subprocess.Popen[bytes]:
        log = (self.folder / f"worker-{len(self.processes)}.log").open("wb")
        with log:
            process = subprocess.Popen(
                self.command("run", "--json", state=state), stdout=log, stderr=log, cwd=self.folder
            )
        self.processes.append(process)
        return process

    def log(self, number: int = 0) -> str:
        return (self.folder / f"worker-{number}.log").read_text(errors="replace")

    def bind(self) -> None:
        """An operator binds the host's key to its name."""
        key = self.ask("key")
        body = {"worker": self.name, "region": PLACE, "pool": "default", "key": key}
        with self.platform.operator() as operator:
            operator.post("/operator/v1/bound-keys", json=body).raise_for_status()

    def joined(self) -> bool:
        rows = self.platform.query(
            "SELECT state FROM airbridge_worker WHERE id = %s AND last_heartbeat_at > now() - interval '15 s'",
            self.name,
        )
        return bool(rows)

    def large_log(self, run_id: str) -> bytes:
        """The log of the task `large` in its bucket, once it is whole."""
        s3, bucket = self.platform.aws_client("s3", "us-east-1"), f"airbridge-local-{PLACE}-logs"
        found = s3.list_objects_v2(Bucket=bucket, Prefix="logs/").get("Contents", ())
        keys = [each["Key"] for each in found if run_id in each["Key"] and "task_id=large" in each["Key"]]
        full = [key for key in keys if key.endswith("/full.log")]
        return s3.get_object(Bucket=bucket, Key=full[0])["Body"].read() if full and keys == full else b""

    @contextmanager
    def cut(self) -> Iterator[None]:
        """Take the host's only way out for the length of a block."""
        ip("-n", self.space.name, "link", "set", "lo", "down")
        try:
            yield
        finally:
            ip("-n", self.space.name, "link", "set", "lo", "up")

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def factory() -> Iterator[Factory]:
    """A control plane with a place without AWS, and one worker in it, bound by its key."""
    choices: dict[str, Any] = {
        "regions": parse_regions(["us-east-1", f"{PLACE}@us-east-1"]),
        "workers_per_region": 0,
        "airflow": {**BOTH_EXECUTORS, "airbridge.default_queue": PLACE},
    }
    with ExitStack() as stack:
        platform = stack.enter_context(running(**choices))
        space = stack.enter_context(namespace(f"factory-{os.getpid()}"))
        folder = Path(platform.directory.root.parent) / "factory"
        folder.mkdir(mode=0o755)
        made = Factory(platform, space, folder)
        shutil.copyfile(platform.directory.ca_file, folder / "ca.crt")
        gateway = ("127.0.0.1", made.port)
        wire = Wire(space.listen(*gateway), lambda: socket.create_connection(gateway, timeout=20))
        stack.enter_context(forwarding(wire))
        made.bind()
        made.start()
        stack.callback(made.stop)
        wait_for(made.joined, "the worker to join by its key")
        platform.add_dag_file(DAGS)
        yield made


def test_network_has_one_way_out(factory: Factory) -> None:
    """The host reaches the gateway's port, and neither the emulator of AWS nor the database nor the operators' port."""
    attempt = "import socket,sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 3)"
    state = factory.platform.state
    ports = {
        "gateway": factory.port,
        "operators": urlsplit(state.operator_url).port,
        "AWS": urlsplit(state.aws_url).port,
        "UI": urlsplit(state.ui_url).port,
        "database": factory.platform.database.port,
    }
    for name, port in ports.items():
        done = subprocess.run(
            ["ip", "netns", "exec", factory.space.name, sys.executable, "-c", attempt, str(port)],
            capture_output=True,
            check=False,
        )
        assert (done.returncode == 0) == (name == "gateway"), name


def test_tasks_run_and_find_no_aws(factory: Factory) -> None:
    """A task placed near a file of the place runs there, in the code that was published, without anything of AWS."""
    run = factory.platform.run("anywhere")
    assert run.state == "success", factory.log()[-3000:]
    assert factory.platform.xcom(run, "look")["aws"] == []
    assert {worker for _, worker in factory.platform.places(run).values()} == {factory.name}
    assert "AWS variables: []" in factory.platform.task_log(run, "conclude")


def test_no_aws_credential_on_the_host(factory: Factory) -> None:
    """No process and no file of the host has the credentials that its queue and buckets are reached with."""
    words = [value.encode() for value in CREDENTIALS.values()] + [
        b"AWS_ACCESS_KEY_ID=",
        b"AWS_SESSION_TOKEN=",
    ]
    pids = command("ip", "netns", "pids", factory.space.name).split()
    assert pids
    for pid in pids:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert not [word for word in words if word in environ], pid
    files = [path for path in factory.folder.rglob("*") if path.is_file() and "bundles" not in path.parts]
    assert files
    secrets = [value.encode() for value in CREDENTIALS.values()]
    # Names of buckets begin like the emulator's keys: what is looked for is the key alone.
    alone = [b'"' + secret + b'"' for secret in secrets] + [b"=" + secret + b"\n" for secret in secrets]
    assert not [path for path in files if any(word in path.read_bytes() for word in alone)]


def test_logs_arrive_live(factory: Factory) -> None:
    """The UI shows a running task's lines while it runs; a log of many megabytes arrives whole at the end."""
    platform = factory.platform
    run_id = platform.trigger("long_and_loud", {"seconds": 20})
    platform.wait_task("long_and_loud", run_id, "talk", {"running"})

    def follows() -> bool:
        return "second 3 of 20" in "\n".join(platform.airflow.log("long_and_loud", run_id, "talk"))

    wait_for(follows, "the line of second 3", 30)
    live = "\n".join(platform.airflow.log("long_and_loud", run_id, "talk"))
    assert "second 19 of 20" not in live
    run = platform.finish("long_and_loud", run_id)
    assert run.state == "success"
    assert "second 19 of 20" in platform.task_log(run, "talk")
    wait_for(lambda: factory.large_log(run_id).count(b"line ") == 60_000, "the whole of the large log", 90)


def _survives(factory: Factory, seconds: int) -> None:
    platform = factory.platform
    run_id = platform.trigger("long_and_loud", {"seconds": seconds + 20})
    platform.wait_task("long_and_loud", run_id, "talk", {"running"})
    time.sleep(5)
    with factory.cut():
        time.sleep(seconds)
    run = platform.finish("long_and_loud", run_id, seconds + 180)
    assert run.state == "success", factory.log()[-3000:]
    assert run.task("talk")["try_number"] == 1

    def missing() -> list[int]:
        text = platform.task_log(run, "talk")
        return [second for second in range(seconds + 20) if f"second {second} of" not in text]

    # The result is reported first; the log follows as its connection comes back.
    wait_for(lambda: not missing(), "every line of the log", 60)


def test_cut_of_a_minute(factory: Factory) -> None:
    """A running task goes on through a cut of a minute, is reported once, and its log has no gap."""
    _survives(factory, CUT_SECONDS)


def test_cut_of_ten_minutes(factory: Factory) -> None:
    """The same for ten minutes."""
    _survives(factory, LONG_CUT_SECONDS)


def test_acceptance_suite(factory: Factory) -> None:
    """Every DAG of the suite of Task SDK features has its outcome, on this worker alone."""
    platform = factory.platform
    connection = {"connection_id": "suite_connection", "conn_type": "http", "host": "example.org"}
    secrets = {"login": "user", "password": SECRET, "extra": '{"a": 1}'}
    platform.airflow._json("POST", "/api/v2/connections", {**connection, **secrets})
    platform.add_dag_file(SUITE)
    names = [f"{name}__edge" for name in OUTCOMES]
    for name in names:
        platform.airflow.wait_for_dag(name)
        platform.airflow.unpause(name)
    for name in names:
        if name.removesuffix("__edge") not in TRIGGERED:
            platform.airflow.trigger(name, run_id="suite")

    def states() -> dict[str, str]:
        return dict(platform.query("SELECT dag_id, state FROM dag_run WHERE dag_id LIKE '%%\\_\\_edge'"))

    wait_for(
        lambda: len(states()) == len(names) and set(states().values()) <= {"success", "failed"},
        "the suite to end",
        420,
    )
    assert {name.removesuffix("__edge"): state for name, state in states().items()} == OUTCOMES


def test_doctor_has_no_complaint(factory: Factory) -> None:
    """The doctor knows the way through the gateway, the bound key and the count of its joins."""
    done = subprocess.run(factory.command("doctor", "--json"), capture_output=True, text=True, check=False)
    checks = {each["check"]: each for each in json.loads(done.stdout)}
    assert "through the gateway" in checks["queue, DAG code and logs"]["detail"]
    assert "joined 1 times" in checks["bound key"]["detail"]
    assert checks["gateway"]["ok"]


def test_copied_state_directory_stops_both(factory: Factory) -> None:
    """A worker that is started from a copy of the state directory stops with the original, and the audit says why."""
    copy = factory.folder / "copy"
    shutil.copytree(
        factory.state, copy, ignore=lambda _, names: [name for name in names if name.endswith(".sock")]
    )
    original, clone = factory.processes[0], factory.start(copy)
    assert original.wait(180) == 3, factory.log()[-3000:]
    assert clone.wait(180) == 3, factory.log(1)[-3000:]
    [(why,)] = factory.platform.query(
        "SELECT detail->>'why' FROM airbridge_audit WHERE event = 'identity.forked' AND worker_id = %s",
        factory.name,
    )
    assert "its state directory was copied" in why
