"""Looks at a host before (or while) a worker runs on it, and says what is wrong and what would be right."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx

from airbridge.edge_worker import disk, health, shields, tls
from airbridge.edge_worker.exceptions import IdentityError, SettingsError
from airbridge.edge_worker.settings import MIB, JoinMethod, WorkerSettings, environment, load
from airbridge.edge_worker.versions import installed

SKEW_SECONDS = 30.0
_SECRETS = (
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "AIRFLOW__API__SECRET_KEY",
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    check: str
    ok: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


def examine(config: Path | None) -> list[Finding]:
    """Look at everything; what the settings are needed for, only if they can be read."""
    findings = [*_host()]
    try:
        settings = load(config)
    except SettingsError as error:
        return [Finding("settings", False, str(error)), *findings]
    findings.insert(0, Finding("settings", True, f"{settings.name} in {settings.pool}@{settings.region}"))
    findings += [_finding(shield) for shield in shields.of_tasks(settings)]
    for check in (_state_dir, _disk, _journal, _join_token, _agent, _gateway):
        findings.append(check(settings))
    return findings


def _host() -> Iterator[Finding]:
    versions = installed()
    yield Finding(
        "versions",
        True,
        f"airbridge {versions.airbridge}, airflow {versions.airflow}, python {versions.python}",
    )
    yield _finding(shields.memory())
    secrets = [name for name in _SECRETS if name in environment()]
    yield Finding(
        "secrets",
        not secrets,
        f"these belong to the control plane, unset them here: {', '.join(secrets)}"
        if secrets
        else "none of the control plane's in the environment",
    )


def _finding(shield: shields.Shield) -> Finding:
    return Finding(shield.name, shield.active, shield.detail)


def _state_dir(settings: WorkerSettings) -> Finding:
    path = settings.state_dir
    existing = next(one for one in (path, *path.parents) if one.exists())
    found = existing.stat()
    wanted = disk.PASSABLE_MODE if settings.task_user else disk.DIRECTORY_MODE
    if existing == path and stat.S_IMODE(found.st_mode) & ~wanted:
        return Finding(
            "state_dir",
            False,
            f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}); make it {wanted:04o}",
        )
    return Finding("state_dir", True, str(path))


def _disk(settings: WorkerSettings) -> Finding:
    existing = next(one for one in (settings.state_dir, *settings.state_dir.parents) if one.exists())
    free = shutil.disk_usage(existing).free // MIB
    needed = settings.min_free_mib + settings.reserve_mib
    return Finding("disk", free >= needed, f"{free} MiB free, at least {needed} MiB needed to claim work")


def _journal(settings: WorkerSettings) -> Finding:
    path = settings.journal_file
    aside = sorted(
        one.name
        for one in path.parent.glob(f"{path.name}.corrupt-*")
        if not one.name.endswith(("-wal", "-shm"))
    )
    if aside:
        return Finding(
            "journal",
            False,
            f"damaged journals were set aside, look at them and remove them: {', '.join(aside)}",
        )
    return Finding("journal", True, f"{path} ({path.stat().st_size} bytes)" if path.exists() else "none yet")


def _join_token(settings: WorkerSettings) -> Finding:
    path = settings.join_token_file
    if settings.join_method is JoinMethod.AWS_IAM or path is None:
        return Finding("join method", True, settings.join_method.value)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return Finding("join token", False, f"{path}: {error.strerror}; it must be a readable file")
    if mode & 0o077:
        return Finding("join token", False, f"{path} is open to others (mode {mode:04o}); make it 0600")
    return Finding("join token", True, str(path))


def _agent(settings: WorkerSettings) -> Finding:
    try:
        found = health.ask(settings.status_socket)
    except (SettingsError, OSError):
        return Finding("agent", True, "not running")
    return Finding(
        "agent", not found["journal"]["full"], f"running, {found['mode']}, {len(found['tasks'])} tasks"
    )


def _gateway(settings: WorkerSettings) -> Finding:
    return asyncio.run(_ask_gateway(settings))


async def _ask_gateway(settings: WorkerSettings) -> Finding:
    try:
        context = tls.anonymous_context(settings.ca_file.read_text())
    except (OSError, UnicodeDecodeError, IdentityError) as error:
        return Finding("gateway", False, f"ca_file {settings.ca_file}: {error}")
    try:
        async with httpx.AsyncClient(
            verify=context, trust_env=False, timeout=settings.connect_timeout_seconds
        ) as client:
            response = await client.get(f"{settings.gateway_url}/healthz")
    except (httpx.HTTPError, ssl.SSLError) as error:
        return Finding("gateway", False, f"{settings.gateway_url}: {type(error).__name__}: {error}")
    skew = _skew(response)
    if skew is not None and abs(skew) > SKEW_SECONDS:
        return Finding(
            "clock",
            False,
            f"this host's clock is {skew:+.0f} s off the gateway's; log timestamps will be as well",
        )
    return Finding(
        "gateway",
        True,
        f"{settings.gateway_url} answers {response.status_code}, clocks within {SKEW_SECONDS:.0f} s",
    )


def _skew(response: httpx.Response) -> float | None:
    try:
        return (datetime.now(UTC) - parsedate_to_datetime(response.headers["Date"])).total_seconds()
    except (KeyError, ValueError):
        return None
