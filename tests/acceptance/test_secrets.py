"""No secret of the control plane at the edge: not in a process, a file or a message."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.platform import LocalPlatform, wait_for

from airbridge.control_plane.local.keys import Keys

_JWT = re.compile(rb"eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}")
_CHUNK = 16 * 1024 * 1024

SLEEPER = """
import time
from airflow.sdk import DAG, Connection, task
from airbridge.core import near

with DAG("secrets_sleeper", schedule=None):
    @task(executor_config=near("region:us-east-1"))
    def sleeps() -> None:
        time.sleep(45)
    sleeps()
"""


def secrets_of(platform: LocalPlatform) -> dict[str, bytes]:
    """Every secret of the control plane, by what it is."""
    keys = Keys.model_validate_json(platform.directory.keys_file.read_bytes())
    found = {
        "JWT secret": keys.jwt_secret.encode(),
        "Fernet key": keys.fernet_key.encode(),
        "API secret": keys.api_secret_key.encode(),
        "database password": keys.database_password.encode(),
        "database URL": platform.database_url.encode(),
    }
    for name in ("ca.key", "signing.key", "token.key"):
        body = (platform.directory.secrets / name).read_text().splitlines()[1]
        found[name] = body.encode()
    return found


def worker_processes(platform: LocalPlatform) -> list[int]:
    """The pids of every worker's agent, zygote, templates, supervisors and tasks."""
    roots = set(platform.worker_pids().values())
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[stat.rindex(")") + 2 :].split()[1])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def memory_of(pid: int) -> Iterator[bytes]:
    """The readable memory of a process, its mapped files included, in overlapping chunks."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, mode, *_ = line.split()
            if not mode.startswith("rw") and "config" not in line:
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            for place in range(start, end, _CHUNK):
                try:
                    memory.seek(place)
                    yield memory.read(min(_CHUNK + 4096, end - place))
                except (OSError, OverflowError, ValueError):
                    break


def task_tokens(data: bytes) -> list[bytes]:
    """The JWTs in `data` that Airflow could have signed for a task; the agent's own access token is EdDSA."""
    found = []
    for match in _JWT.findall(data):
        header = match.split(b".")[0]
        try:
            algorithm = json.loads(base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4)))["alg"]
        except (ValueError, KeyError, TypeError):
            continue
        if algorithm != "EdDSA":
            found.append(match)
    return found


def test_no_secret_reaches_the_edge(platform: LocalPlatform) -> None:
    """Environments, memory and files of every worker process, with a task running: no secret, no task token."""
    platform.add_dag("secrets_sleeper", SLEEPER)
    run_id = platform.trigger("secrets_sleeper")
    platform.wait_task("secrets_sleeper", run_id, "sleeps", {"running"})
    time.sleep(2.0)
    secrets = secrets_of(platform)
    found: list[tuple[Any, str, str]] = []
    inspected = 0
    for pid in worker_processes(platform):
        # One that waits for its next task may end while it is read.
        with suppress(ProcessLookupError, FileNotFoundError):
            places = [("environment", Path(f"/proc/{pid}/environ").read_bytes())]
            for kind, data in [*places, *(("memory", chunk) for chunk in memory_of(pid))]:
                found += [(pid, kind, what) for what, secret in secrets.items() if secret in data]
                found += [(pid, kind, "task token") for _token in task_tokens(data)]
            inspected += 1
    assert inspected > 2 * len(platform.worker_pids()), "the runner's processes are looked at too"
    for worker in platform.worker_pids():
        for path in platform.worker_home(worker).rglob("*"):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                found += [(str(path), "file", what) for what, secret in secrets.items() if secret in data]
                found += [(str(path), "file", "task token") for _token in task_tokens(data)]
    assert found == []


PARSED_SLOWLY = """
import time
from airflow.sdk import DAG
time.sleep(20)
with DAG("parsed_slowly", schedule=None):
    pass
"""


def test_no_secret_reaches_the_parser(platform: LocalPlatform) -> None:
    """Environments, memory and open files of the processes that parse DAG files, one of them at it: no secret."""
    secrets = secrets_of(platform)
    processor = platform.pid("dag-processor")
    platform.add_dag("parsed_slowly", PARSED_SLOWLY)
    found: list[tuple[int, str, str]] = []
    inspected: set[int] = set()

    def two_inspected() -> bool:
        for pid in _below(processor) - inspected:
            # A process that parses a file may end while it is read: another one follows.
            with suppress(ProcessLookupError, FileNotFoundError):
                found.extend(_secrets_in(platform, pid, secrets))
                inspected.add(pid)
        return len(inspected) >= 2

    wait_for(two_inspected, "the zygote and a process that parses a file to be inspected", 120)
    assert found == []


def _secrets_in(
    platform: LocalPlatform, pid: int, secrets: Mapping[str, bytes]
) -> list[tuple[int, str, str]]:
    """Return the secrets in a process's environment and memory, and its descriptors of files that hold some."""
    places = [("environment", Path(f"/proc/{pid}/environ").read_bytes())]
    found = [
        (pid, kind, what)
        for kind, data in [*places, *(("memory", chunk) for chunk in memory_of(pid))]
        for what, secret in secrets.items()
        if secret in data
    ]
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        target = str(entry.readlink())
        if target.startswith(str(platform.directory.secrets)) or target.endswith("airflow.cfg"):
            found.append((pid, "descriptor", target))
    return found


def _below(pid: int) -> set[int]:
    """Return the pids of a process's descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in children} | {more for child in children for more in _below(int(child))}


def test_no_secret_is_on_a_queue(platform: LocalPlatform) -> None:
    """A message holds a signed work item and nothing more: no secret, no token."""
    sqs = platform.aws_client("sqs", "us-east-1")
    queue_url = _queue_url(platform)
    messages: list[str] = []

    def received() -> bool:
        answer = sqs.receive_message(QueueUrl=queue_url, VisibilityTimeout=0, WaitTimeSeconds=1)
        messages.extend(message["Body"] for message in answer.get("Messages", []))
        return bool(messages)

    with _drained(platform, "us-east-1-default-1"):
        platform.add_dag("secrets_sleeper", SLEEPER.replace("time.sleep(45)", "pass"))
        platform.trigger("secrets_sleeper")
        wait_for(received, "a message on the queue", 60)
    secrets = secrets_of(platform)
    for message in messages:
        envelope = json.loads(message)
        payload = base64.urlsafe_b64decode(envelope["payload"] + "==")
        for data in (message.encode(), payload):
            assert [what for what, secret in secrets.items() if secret in data] == []
            assert _JWT.findall(data) == []


@contextmanager
def _drained(platform: LocalPlatform, worker: str) -> Iterator[None]:
    """Have the worker leave its queue alone for the length of the block."""

    def state() -> str:
        return str(platform.query("SELECT state FROM airbridge_worker WHERE id = %s", worker)[0][0])

    with platform.operator() as operator:
        operator.post(f"/operator/v1/workers/{worker}/drain").raise_for_status()
        try:
            wait_for(lambda: state() == "draining", f"{worker} to drain", 60)
            yield
        finally:
            operator.post(f"/operator/v1/workers/{worker}/resume").raise_for_status()
            wait_for(lambda: state() == "active", f"{worker} to resume", 60)


def _queue_url(platform: LocalPlatform) -> str:
    from airbridge.core.catalogue import Catalogue

    catalogue = Catalogue.read(platform.directory.regions_file)
    urls = [pool.queue_url for region, pool in catalogue.places() if region.name == "us-east-1"]
    return str(urls[0])
