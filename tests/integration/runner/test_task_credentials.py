"""AWS credentials that the gateway has for tasks: what a task finds of them, and their renewal."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import random
import stat
import subprocess
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.runner.world import World

from airbridge.core.protocol import RegionSettings
from airbridge.core.wire.brokering import AwsCredentials, AwsCredentialsRequest
from airbridge.edge_worker.exceptions import GatewayUnreachable
from airbridge.edge_worker.runner import airflow_home
from airbridge.edge_worker.runner.sandbox.task_user import TaskUser
from airbridge.edge_worker.settings import WorkerSettings
from airbridge.edge_worker.transfer import task_credentials
from airbridge.edge_worker.transfer.task_credentials import TaskCredentials

REGION = RegionSettings(
    region="factory-7",
    pool="default",
    queue_url="https://sqs",
    log_bucket="l",
    bundle_bucket="b",
    aws_region="eu-central-1",
    transport="gateway",
    task_credentials=True,
)

DAG = """
from airflow.sdk import DAG, task

with DAG("d", schedule=None):
    @task
    def reads():
        from botocore.session import get_session

        session = get_session()
        found = session.get_credentials().get_frozen_credentials()
        return [found.access_key, found.secret_key, found.token, session.get_config_variable("region")]

    reads()
"""


@dataclass
class Gateway:
    """Hands out keys with numbers, unless it is cut."""

    asked: list[AwsCredentialsRequest] = field(default_factory=list)
    cut: bool = False
    expires_in: float = 3600.0

    def ask(
        self, what: str, request: AwsCredentialsRequest, answer: Any, *, wait_seconds: float = 0.0
    ) -> Any:
        assert what == "credentials"
        self.asked.append(request)
        if self.cut:
            raise GatewayUnreachable("cut")
        return AwsCredentials(
            access_key_id=f"AKIA{len(self.asked):016d}",
            secret_access_key="secret",
            session_token="token",
            expires_in=self.expires_in,
            expires_at=datetime.now(UTC) + timedelta(seconds=self.expires_in),
        )


@dataclass
class Clock:
    """A clock that tests move, and the wall clock of a host that may be behind."""

    seconds: float = 100.0
    behind: timedelta = timedelta(0)

    def elapsed(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime.now(UTC) - self.behind


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    return WorkerSettings(
        name="w",
        region="factory-7",
        gateway_url="https://gateway.example",
        ca_file=tmp_path / "ca.crt",
        join_method="bound_key",
        state_dir=tmp_path / "a state's directory",
    )


def keeper(gateway: Gateway, settings: WorkerSettings, clock: Any) -> TaskCredentials:
    return TaskCredentials(gateway, settings, clock=clock, random=random.Random(1).random)


def document(settings: WorkerSettings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((settings.airflow_home / task_credentials.CREDENTIALS).read_text())
    return found


def test_task_finds_its_credentials(own_world: World, settings: WorkerSettings) -> None:
    """A task in its sandbox gets the gateway's credentials, and their region, by botocore's own rules; no variable has a key."""
    world = own_world
    given = settings.model_copy(update={"state_dir": world.folder})
    # The world's own home, which its runner prepares.
    assert (
        given.airflow_home == world.settings.airflow_home
        or world.settings.airflow_home.parent == world.folder
    )
    variables = task_credentials.prepare(REGION, given)
    asyncio.run(keeper(Gateway(), given, Clock()).keep(wanted=True))
    root = world.write(DAG)

    async def test() -> None:
        await world.configure({}, variables)
        run = await world.run(root, "reads")
        assert run.proxy.states == ["success"]
        [value] = world.api.xcoms.values()
        assert json.loads(value) == ["AKIA0000000000000001", "secret", "token", "eu-central-1"]

    world.do(test())


def test_pool_without_them_changes_nothing(settings: WorkerSettings) -> None:
    """Tasks of a pool whose gateway has nothing for them find what their host has."""
    assert task_credentials.prepare(REGION.model_copy(update={"task_credentials": False}), settings) == {}
    assert not settings.airflow_home.exists()


def test_renewed_when_half_is_left(settings: WorkerSettings) -> None:
    """They are renewed after half of their life by the time since boot; their end is by the host's own clock, wrong or not."""
    gateway, clock = Gateway(), Clock(behind=timedelta(days=1))

    async def test() -> None:
        keeps = keeper(gateway, settings, clock)
        await keeps.keep(wanted=True)
        await keeps.keep(wanted=True)
        assert [request.for_tasks for request in gateway.asked] == [True]
        left = datetime.fromisoformat(document(settings)["Expiration"]) - clock.now()
        assert timedelta(minutes=59) < left <= timedelta(hours=1)
        clock.seconds += 1801
        await keeps.keep(wanted=True)
        assert document(settings)["AccessKeyId"] == "AKIA0000000000000002"

    asyncio.run(test())


def test_kept_through_a_cut(settings: WorkerSettings) -> None:
    """While the gateway is unreachable what there is stays, and the gateway is tried again, not at every look."""
    gateway, clock = Gateway(), Clock()

    async def test() -> None:
        keeps = keeper(gateway, settings, clock)
        await keeps.keep(wanted=True)
        gateway.cut = True
        clock.seconds += 1801
        for _ in range(5):
            await keeps.keep(wanted=True)
        assert len(gateway.asked) == 2
        assert document(settings)["AccessKeyId"] == "AKIA0000000000000001"
        gateway.cut = False
        clock.seconds += 120
        await keeps.keep(wanted=True)
        assert document(settings)["AccessKeyId"] == "AKIA0000000000000003"

    asyncio.run(test())


def test_deleted_when_they_are_not_wanted(settings: WorkerSettings) -> None:
    """A pool that gives its tasks nothing any more leaves nothing on the disk; what is there others cannot read."""

    async def test() -> None:
        keeps = keeper(Gateway(), settings, Clock())
        await keeps.keep(wanted=True)
        path = settings.airflow_home / task_credentials.CREDENTIALS
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        await keeps.keep(wanted=False)
        assert not path.exists()

    asyncio.run(test())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("umask", [0o022, 0o077], ids=["022", "077"])
def test_task_user_alone_reads_them(settings: WorkerSettings, umask: int) -> None:
    """With a task_user, whatever the umask is, what the agent writes for tasks is read by that user and the agent, and changed by none."""
    with tempfile.TemporaryDirectory(prefix="airbridge-", dir="/var/tmp") as name:
        Path(name).chmod(0o711)
        given = settings.model_copy(update={"state_dir": Path(name), "task_user": "nobody"})
        before = os.umask(umask)
        try:
            task_credentials.prepare(REGION, given)
            asyncio.run(keeper(Gateway(), given, Clock()).keep(wanted=True))
            options = {"smtp": {"smtp_password": "sesame-open"}}
            airflow_home.prepare(given.airflow_home, options, TaskUser.named("nobody"))
        finally:
            os.umask(before)
        home = given.airflow_home
        for path in (
            home / task_credentials.CONFIG,
            home / task_credentials.CREDENTIALS,
            home / "airflow.cfg",
        ):
            assert can("nobody", "cat", path), path
            assert not can("daemon", "cat", path), path
            assert not can("nobody", "chmod", "u+w", path), path
        assert can("nobody", "ls", home)
        assert not can("daemon", "ls", home)
        assert not can("nobody", "touch", home / "more")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_configuration_of_earlier_version_is_closed(settings: WorkerSettings) -> None:
    """A configuration that is there already, open to every user or to none, gets the mode that it should have."""
    given = settings.model_copy(update={"task_user": "nobody"})
    task_credentials.prepare(REGION, given)
    path = given.airflow_home / task_credentials.CONFIG
    for mode in (0o644, 0o600):
        path.chmod(mode)
        os.chown(path, 0, 0)
        task_credentials.prepare(REGION, given)
        found = path.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o640, TaskUser.named("nobody").gid)


def can(user: str, *command: object) -> bool:
    """Return whether a user of this host can do it."""
    of = pwd.getpwnam(user)
    arguments = [str(each) for each in command]
    ran = subprocess.run(
        arguments, check=False, capture_output=True, user=of.pw_uid, group=of.pw_gid, extra_groups=[]
    )
    return ran.returncode == 0


def test_full_disk_ends_no_renewal(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An identity that is renewed while the disk is full finds the configuration as it is, and writes nothing."""
    first = task_credentials.prepare(REGION, settings)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert task_credentials.prepare(REGION, settings) == first
    # Nor does one that cannot be written end the worker.
    (settings.airflow_home / task_credentials.CONFIG).unlink()
    assert task_credentials.prepare(REGION, settings) == first


def test_configuration_is_botocores(
    settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The configuration is understood whatever the directory is called, waits for the first credentials, and comes before a file of the
    host's."""
    from botocore.session import Session

    # A file of the host's user, which botocore would read before.
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = HOST\naws_secret_access_key = HOST\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE", raising=False)
    for name, value in task_credentials.prepare(REGION, settings).items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)

    async def test() -> str:
        session = Session()
        found = asyncio.create_task(asyncio.to_thread(lambda: session.get_credentials().access_key))
        await asyncio.sleep(1)
        assert not found.done()
        await keeper(Gateway(), settings, Clock()).keep(wanted=True)
        return await asyncio.wait_for(found, 30)

    assert asyncio.run(test()) == "AKIA0000000000000001"
