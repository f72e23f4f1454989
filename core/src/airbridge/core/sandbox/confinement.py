"""Rights that a process gives up before it runs code of others: pushed DAG code that is checked, a DAG file that is parsed.

It can read Python, the libraries, the code and a few files of the system, and write its scratch directory. It has no
network, changes no attributes of files, cannot see, trace, limit or signal a process outside (signals: Linux 6.12), makes no
namespaces, and cannot gain privileges. CPU, memory, file sizes, descriptors and processes are bounded (processes not for
root). Landlock and seccomp do it; where the kernel lacks one, the rest holds, unless both are required.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import structlog

from airbridge.core.exceptions import SandboxError
from airbridge.core.sandbox import capabilities, hardening, landlock, seccomp
from airbridge.core.sandbox.landlock import READ, Domain

_SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/bin", "/dev/null", "/dev/urandom", "/dev/random", "/dev/zero", "/proc", "/sys/fs/cgroup",
    "/etc/ssl", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/passwd", "/etc/group", "/etc/hosts",
    "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/mime.types", "/etc/os-release",
)  # fmt: skip
_MIB: Final = 1024 * 1024
# Processes and threads that confined code may add to those of its user.
_PROCESSES: Final = 256

_BOUNDS: Final = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 64 * _MIB),
    (resource.RLIMIT_NOFILE, 512),
    (resource.RLIMIT_DATA, 2048 * _MIB),
    (resource.RLIMIT_MSGQUEUE, 0),
)


def missing() -> tuple[str, ...]:
    """Return what this host lacks for confinement."""
    lacks = {
        "Landlock (Linux 5.13 with landlock in CONFIG_LSM or lsm=)": not landlock.abi(),
        "seccomp filters": not seccomp.available(),
    }
    return tuple(name for name, lacking in lacks.items() if lacking)


def check(*, required: bool) -> None:
    """Raise `SandboxError` if confinement is required and this host lacks something for it."""
    if required and (lacks := missing()):
        raise SandboxError(
            f"[airbridge] sandbox is 'require', but this host lacks {' and '.join(lacks)}, or the container's seccomp "
            "profile denies it; 'auto' goes on without"
        )


def enter(
    readable: Iterable[Path],
    scratch: Path,
    *,
    required: bool = False,
    cpu_seconds: int | None = None,
    installs: bool = False,
) -> None:
    """Confine this process, and all that it will start, to `readable` and `scratch`. Raises `SandboxError`, `OSError`.

    With `installs` it keeps the network, may set modes of files, and may write files of up to 1 GiB: it installs packages.
    It becomes the leader of a session that nothing it starts can leave: killing its process group ends all of it.
    """
    check(required=required)
    if lacks := missing():
        structlog.get_logger().warning("sandbox.incomplete", missing=lacks)
    if os.getsid(0) != os.getpid():
        os.setsid()
    _bound(cpu_seconds, installs=installs)
    hardening.harden()
    os.environ["TMPDIR"] = os.environ["HOME"] = str(scratch)
    tempfile.tempdir = None
    os.chdir(scratch)
    capabilities.drop(capabilities.READ_ANY)
    if version := landlock.abi():
        _close_files(version, readable, scratch, network=installs)
    if seccomp.available():
        families = (seccomp.PROCESSES, seccomp.KERNEL, seccomp.SESSIONS)
        closed = () if installs else (seccomp.NETWORK, seccomp.ATTRIBUTES)
        seccomp.deny(*closed, *families, own=seccomp.OTHERS)


def _bound(cpu_seconds: int | None, *, installs: bool) -> None:
    bounds = dict(_BOUNDS) | {resource.RLIMIT_NPROC: _threads_of_user() + _PROCESSES}
    if installs:
        bounds[resource.RLIMIT_FSIZE] = 1024 * _MIB
    if cpu_seconds is not None:
        bounds[resource.RLIMIT_CPU] = cpu_seconds
    for bound, most in bounds.items():
        hard = resource.getrlimit(bound)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(bound, (allowed, allowed))


def _threads_of_user() -> int:
    """Return how many threads this process's user has: the kernel counts them all against each process's bound."""
    user, found = os.geteuid(), 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if entry.stat().st_uid == user:
                    found += len(os.listdir(f"/proc/{entry.name}/task"))  # noqa: PTH208 - only counted
            except OSError:
                continue
    return found


def _close_files(version: int, readable: Iterable[Path], scratch: Path, *, network: bool) -> None:
    rights = landlock.everything(version)
    domain = Domain(rights, version, network=network)
    for path in {*_SYSTEM, *sys.path, sys.prefix, sys.base_prefix, *map(str, readable)} - {""}:
        domain.grant(os.path.realpath(path), READ)
    domain.grant("/dev/null", rights)
    domain.grant(os.path.realpath(scratch), rights)
    domain.enter()
