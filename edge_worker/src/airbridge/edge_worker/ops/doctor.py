"""Checks of a host before (or while) a worker runs on it; a failed one names what to change."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from airbridge.core.sandbox import landlock
from airbridge.edge_worker.exceptions import IdentityError, SettingsError
from airbridge.edge_worker.gateway_client import bound_key, tls
from airbridge.edge_worker.ops import health, issuer_token, region_checks
from airbridge.edge_worker.ops.check_result import CheckResult
from airbridge.edge_worker.ops.versions import installed
from airbridge.edge_worker.runner.limits import cgroups
from airbridge.edge_worker.runner.sandbox import sandbox_check, short_path
from airbridge.edge_worker.runner.settings import NEEDED_FOR_SOCKETS, room_for_sockets
from airbridge.edge_worker.settings import (
    MIB,
    JoinMethod,
    TaskCgroups,
    TaskSandbox,
    WorkerSettings,
    environment,
    load,
)
from airbridge.edge_worker.storage import disk

SKEW_SECONDS = 30.0
_SECRETS = (
    "AIRFLOW__CORE__FERNET_KEY",
    "AIRFLOW__API_AUTH__JWT_SECRET",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN",
    "AIRFLOW__API__SECRET_KEY",
)


def run_checks(config: Path | None) -> list[CheckResult]:
    """Run all checks; those that need the settings only if they can be read."""
    results = [*_host()]
    try:
        settings = load(config)
    except SettingsError as error:
        return [CheckResult("settings", False, str(error)), *results]
    results.insert(0, CheckResult("settings", True, f"{settings.name} in {settings.pool}@{settings.region}"))
    results += [_from_sandbox_check(check) for check in sandbox_check.check_tasks(settings)]
    results.append(check_limits(settings))
    for examine in (_state_dir, _socket_room, _disk, _journal, _join_token, _agent, _gateway):
        results.append(examine(settings))
    return [*results, *region_checks.check(settings)]


def _host() -> Iterator[CheckResult]:
    versions = installed()
    yield CheckResult(
        "versions",
        True,
        f"airbridge {versions.airbridge}, airflow {versions.airflow}, python {versions.python}",
    )
    yield _from_sandbox_check(sandbox_check.check_memory())
    secrets = [name for name in _SECRETS if name in environment()]
    yield CheckResult(
        "secrets",
        not secrets,
        f"these belong to the control plane, unset them here: {', '.join(secrets)}"
        if secrets
        else "none of the control plane's in the environment",
    )


def _from_sandbox_check(check: sandbox_check.SandboxCheck) -> CheckResult:
    return CheckResult(check.name, check.active, check.detail)


def check_limits(settings: WorkerSettings) -> CheckResult:
    """Check what holds tasks to their limits: of the running agent, or else as it would be for this process."""
    try:
        held = health.read_status(settings.status_socket).get("limits", {})
        name, why = held.get("held_by", "unknown"), held.get("why_no_cgroup")
    except (SettingsError, OSError):
        found = cgroups.find()
        name, why = (found.name, None) if isinstance(found, cgroups.Cgroups) else ("", found.reason)
    if settings.task_cgroups is TaskCgroups.OFF:
        why = "task_cgroups is 'off'"
    if why is None:
        return CheckResult("task limits", True, f"{name}: {_slot(settings)}{_open_to_tasks(settings)}")
    detail = f"no cgroups: {why}. Each process of a task is limited by itself, and their number is not"
    wanted = settings.slot_cpus is not None or settings.slot_processes is not None
    required = settings.task_cgroups is TaskCgroups.REQUIRE
    return CheckResult("task limits", not (wanted or required), detail)


def _open_to_tasks(settings: WorkerSettings) -> str:
    """Return that tasks can change their cgroups, if they can: they run as the agent's user, and nothing closes its files."""
    closed = settings.task_user or (landlock.abi() and settings.task_sandbox is not TaskSandbox.OFF)
    return "" if closed else "; without Landlock or a task_user, a task that means to can leave them"


def _slot(settings: WorkerSettings) -> str:
    """Return a slot's limits in words."""
    parts = {
        "memory": settings.slot_memory_mib and f"{settings.slot_memory_mib} MiB",
        "cpus": settings.slot_cpus and f"{settings.slot_cpus:g}",
        "processes": settings.slot_processes,
        "disk": settings.slot_disk_mib and f"{settings.slot_disk_mib} MiB",
    }
    said = ", ".join(f"{name} {value}" for name, value in parts.items() if value)
    return (
        f"a slot has {said}" if said else "a slot has no limits (slot_memory_mib, slot_cpus, slot_processes)"
    )


def _state_dir(settings: WorkerSettings) -> CheckResult:
    path = settings.state_dir
    existing = next(one for one in (path, *path.parents) if one.exists())
    found = existing.stat()
    wanted = disk.PASSABLE_MODE if settings.task_user else disk.DIRECTORY_MODE
    if existing == path and stat.S_IMODE(found.st_mode) & ~wanted:
        return CheckResult(
            "state_dir",
            False,
            f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}); make it {wanted:04o}",
        )
    return CheckResult("state_dir", True, str(path))


def _socket_room(settings: WorkerSettings) -> CheckResult:
    room = room_for_sockets(settings.airflow_home)
    if room >= NEEDED_FOR_SOCKETS:
        return CheckResult("sockets", True, f"{room} characters for a UNIX socket beneath a task's TMPDIR")
    if (place := short_path.place()) is not None:
        return CheckResult(
            "sockets", True, f"state_dir is long; tasks reach their TMPDIR by a short link in {place}"
        )
    length = len(str(settings.state_dir))
    return CheckResult(
        "sockets",
        False,
        f"state_dir has {length} characters and no short link to it can be made in /run or /var/tmp, so that UNIX sockets in a task's TMPDIR (multiprocessing's Manager, forkserver) may "
        f"fail with 'AF_UNIX path too long'; choose one of at most {length + room - NEEDED_FOR_SOCKETS}",
    )


def _disk(settings: WorkerSettings) -> CheckResult:
    existing = next(one for one in (settings.state_dir, *settings.state_dir.parents) if one.exists())
    free = shutil.disk_usage(existing).free // MIB
    needed = settings.min_free_mib + settings.reserve_mib
    return CheckResult("disk", free >= needed, f"{free} MiB free, at least {needed} MiB needed to claim work")


def _journal(settings: WorkerSettings) -> CheckResult:
    path = settings.journal_file
    aside = sorted(
        one.name
        for one in path.parent.glob(f"{path.name}.corrupt-*")
        if not one.name.endswith(("-wal", "-shm"))
    )
    if aside:
        return CheckResult(
            "journal",
            False,
            f"damaged journals were set aside, look at them and remove them: {', '.join(aside)}",
        )
    return CheckResult(
        "journal", True, f"{path} ({path.stat().st_size} bytes)" if path.exists() else "none yet"
    )


def _bound_key(settings: WorkerSettings) -> CheckResult:
    try:
        count = bound_key.read_count(settings.join_count_file)
        key = bound_key.public_key_of(settings, make=False)
    except IdentityError as error:
        return CheckResult("bound key", False, str(error))
    if key is None:
        return CheckResult(
            "bound key", True, "none yet: 'airbridge-worker key' makes it, and prints what an operator binds"
        )
    if count.counter == 0 and settings.join_token_file is None:
        return CheckResult(
            "bound key",
            True,
            f"{key}, not joined yet: an operator binds it by 'airbridge worker bind {settings.name} --region {settings.region} "
            f"--pool {settings.pool} --key {key}'",
        )
    return CheckResult(
        "bound key", True, f"{key}, joined {count.counter} times; never copy {settings.state_dir}"
    )


def _join_token(settings: WorkerSettings) -> CheckResult:
    if settings.join_method is JoinMethod.BOUND_KEY:
        return _bound_key(settings)
    path = settings.join_token_file
    if settings.join_method is JoinMethod.AWS_IAM or path is None:
        return CheckResult("join method", True, settings.join_method.value)
    if settings.join_method in {JoinMethod.OIDC, JoinMethod.KUBERNETES}:
        return issuer_token.check(path, datetime.now(UTC))
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        return CheckResult("join token", False, f"{path}: {error.strerror}; it must be a readable file")
    if mode & 0o077:
        return CheckResult("join token", False, f"{path} is open to others (mode {mode:04o}); make it 0600")
    return CheckResult("join token", True, str(path))


def _agent(settings: WorkerSettings) -> CheckResult:
    try:
        found = health.read_status(settings.status_socket)
    except (SettingsError, OSError):
        return CheckResult("agent", True, "not running")
    if error := found.get("queue", {}).get("error"):
        return CheckResult("agent", False, f"running, but it cannot receive from its queue: {error}")
    return CheckResult(
        "agent", not found["journal"]["full"], f"running, {found['mode']}, {len(found['tasks'])} tasks"
    )


def _gateway(settings: WorkerSettings) -> CheckResult:
    return asyncio.run(_check_gateway(settings))


async def _check_gateway(settings: WorkerSettings) -> CheckResult:
    try:
        context = tls.anonymous_context(settings.ca_file.read_text())
    except (OSError, UnicodeDecodeError, IdentityError) as error:
        return CheckResult("gateway", False, f"ca_file {settings.ca_file}: {error}")
    try:
        async with httpx.AsyncClient(
            verify=context, trust_env=False, timeout=settings.connect_timeout_seconds
        ) as client:
            response = await client.get(f"{settings.gateway_url}/healthz")
    except (httpx.HTTPError, ssl.SSLError) as error:
        return CheckResult("gateway", False, f"{settings.gateway_url}: {type(error).__name__}: {error}")
    skew = _skew(response)
    if skew is not None and abs(skew) > SKEW_SECONDS:
        return CheckResult(
            "clock",
            False,
            f"this host's clock is {skew:+.0f} s off the gateway's; log timestamps will be as well",
        )
    return CheckResult(
        "gateway",
        True,
        f"{settings.gateway_url} answers {response.status_code}, clocks within {SKEW_SECONDS:.0f} s",
    )


def _skew(response: httpx.Response) -> float | None:
    try:
        return (datetime.now(UTC) - parsedate_to_datetime(response.headers["Date"])).total_seconds()
    except (KeyError, ValueError):
        return None
