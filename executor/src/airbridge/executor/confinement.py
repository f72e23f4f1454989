"""What a process gives up before it runs code that others have pushed.

It can read Python, the libraries, the code and a few files of the system; it can write its scratch directory; it has no
TCP, cannot see, trace or signal a process outside, and cannot gain privileges. Where the kernel has no Landlock, only the
bounds on resources hold, and what is left is the environment's being clean and the caller's not being dumpable.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Final

import structlog

from airbridge.executor import landlock, protection
from airbridge.executor.landlock import READ, Domain

_SYSTEM: Final = (
    "/usr", "/lib", "/lib64", "/bin", "/dev/null", "/dev/urandom", "/dev/random", "/dev/zero", "/proc", "/sys/fs/cgroup",
    "/etc/ssl", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/passwd", "/etc/group", "/etc/hosts",
    "/etc/nsswitch.conf", "/etc/resolv.conf", "/etc/mime.types", "/etc/os-release",
)  # fmt: skip
_MIB: Final = 1024 * 1024
_BOUNDS: Final = (
    (resource.RLIMIT_CORE, 0),
    (resource.RLIMIT_FSIZE, 64 * _MIB),
    (resource.RLIMIT_NOFILE, 512),
    (resource.RLIMIT_DATA, 2048 * _MIB),
)


def enter(root: Path, scratch: Path) -> None:
    """Confine this process, and all that it will start, to `root` and `scratch`."""
    for bound, most in _BOUNDS:
        hard = resource.getrlimit(bound)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(bound, (allowed, allowed))
    protection.harden()
    os.environ["TMPDIR"] = os.environ["HOME"] = str(scratch)
    tempfile.tempdir = None
    version = landlock.abi()
    if not version:
        structlog.get_logger().warning("parse.not_confined", detail="this kernel offers no Landlock")
        return
    rights = landlock.everything(version)
    domain = Domain(rights, version, network=False)
    for path in {*_SYSTEM, *sys.path, sys.prefix, sys.base_prefix, str(root)} - {""}:
        domain.grant(os.path.realpath(path), READ)
    domain.grant("/dev/null", rights)
    domain.grant(os.path.realpath(scratch), rights)
    domain.enter()
