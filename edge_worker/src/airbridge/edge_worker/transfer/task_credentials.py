"""AWS credentials that the gateway hands out for tasks: in a file that tasks read, renewed long before they expire.

Tasks find them by a configuration of AWS whose `credential_process` prints the file. Clients of AWS run it again when what they
have is about to expire, so a task of many hours is not left with what it began with. While the gateway is unreachable, what there is
stays.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final

import structlog

from airbridge.core.backoff import Backoff
from airbridge.core.protocol import RegionSettings
from airbridge.core.wire.brokering import AwsCredentials, AwsCredentialsRequest
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import GatewayError, SettingsError
from airbridge.edge_worker.runner.sandbox import task_files
from airbridge.edge_worker.runner.sandbox.task_user import TaskUser
from airbridge.edge_worker.settings import WorkerSettings
from airbridge.edge_worker.transfer.brokered import Asks

log = structlog.get_logger(__name__)

CONFIG: Final = "aws.config"
CREDENTIALS: Final = "aws-credentials.json"
#: Share of their life after which they are renewed.
_RENEW_AFTER: Final = 0.5
#: Seconds between two looks at whether the tasks are to have credentials, and at the age of those that there are.
_LOOK_SECONDS: Final = 1.0
#: Seconds for which a task that needs the first ones waits for them.
_WAIT_SECONDS: Final = 60


def prepare(region: RegionSettings, settings: WorkerSettings) -> dict[str, str]:
    """Write the configuration by which tasks find their credentials; return the variables that lead to it, or none without them."""
    if not region.task_credentials:
        return {}
    home = settings.airflow_home
    file = home / CREDENTIALS
    # The first task may be faster than the first credentials.
    quoted = shlex.quote(str(file))
    script = (
        f"for i in $(seq {_WAIT_SECONDS}); do [ -s {quoted} ] && exec cat {quoted}; sleep 1; done; exit 1"
    )
    process = shlex.join(["/bin/sh", "-c", script])
    text = f"[default]\nregion = {region.aws}\ncredential_process = {process}\n"
    try:
        _write_config(home / CONFIG, text, _user(settings))
    except (OSError, SettingsError) as error:
        # Tasks without AWS run all the same; the next identity tries again.
        log.warning("task_credentials.not_configured", path=str(home / CONFIG), detail=str(error))
    return {
        "AWS_CONFIG_FILE": str(home / CONFIG),
        # Clients of AWS would read a file of the host's user before.
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        # Tasks must not find those of the machine's own role instead.
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_REGION": region.aws,
        "AWS_DEFAULT_REGION": region.aws,
    }


class TaskCredentials:
    """Keeps the file with the credentials; see the module. `random` returns numbers from 0 up to 1."""

    def __init__(
        self, transfers: Asks, settings: WorkerSettings, *, clock: Clock, random: Callable[[], float]
    ) -> None:
        self._transfers = transfers
        self._file = settings.airflow_home / CREDENTIALS
        self._settings = settings
        self._clock = clock
        self._backoff = Backoff(settings.retry_base_seconds, settings.retry_cap_seconds, random)
        self._due = float("-inf")

    async def run(self, wanted: Callable[[], bool | None]) -> None:
        """Keep the credentials fresh while they are wanted, until cancelled. None: they cannot be renewed now, and stay."""
        while True:
            if (now := wanted()) is not None:
                await self.keep(wanted=now)
            await asyncio.sleep(_LOOK_SECONDS)

    async def keep(self, *, wanted: bool) -> None:
        """Renew the credentials if it is time; delete them if they are not wanted."""
        if not wanted:
            self._due = float("-inf")
            self._file.unlink(missing_ok=True)
        elif self._clock.elapsed() >= self._due:
            # By the time since boot: a suspended host has old ones when it wakes.
            self._due = self._clock.elapsed() + await self._renew()

    async def _renew(self) -> float:
        """Renew them; return the seconds until the next time."""
        request = AwsCredentialsRequest(for_tasks=True)
        try:
            given = await asyncio.to_thread(self._transfers.ask, "credentials", request, AwsCredentials)
            _replace(self._file, self._document(given), _user(self._settings))
        except (GatewayError, OSError, SettingsError) as error:
            pause = self._backoff.failed()
            log.warning("task_credentials.not_renewed", detail=str(error), retry_seconds=round(pause, 1))
            return pause
        self._backoff.succeeded()
        log.info(
            "task_credentials.renewed", access_key_id=given.access_key_id, seconds=round(given.expires_in)
        )
        return given.expires_in * _RENEW_AFTER

    def _document(self, given: AwsCredentials) -> str:
        # By this host's clock, wrong or not: it is the one that clients compare it to.
        expires = self._clock.now() + timedelta(seconds=given.expires_in)
        return json.dumps(
            {
                "Version": 1,
                "AccessKeyId": given.access_key_id,
                "SecretAccessKey": given.secret_access_key,
                "SessionToken": given.session_token,
                "Expiration": expires.isoformat(),
            }
        )


def _user(settings: WorkerSettings) -> TaskUser | None:
    """Return the user of the tasks, None for the agent's own. Raises `SettingsError` if there is none any more."""
    return TaskUser.named(settings.task_user) if settings.task_user else None


def _write_config(path: Path, text: str, user: TaskUser | None) -> None:
    """Write it unless it is there as it should be: each renewal of the identity comes here."""
    if path.exists() and path.read_text() == text:
        task_files.admit(path, user)
    else:
        _replace(path, text, user)


def _replace(path: Path, text: str, user: TaskUser | None) -> None:
    task_files.make_directory(path.parent, user)
    task_files.replace(path, text, user)
