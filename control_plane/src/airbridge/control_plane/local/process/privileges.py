"""Setup of child processes before exec: they die with their parent, and Postgres does not run as root.

Postgres refuses to run as root. Under root it gets the uid of `nobody` and one capability, CAP_DAC_OVERRIDE, so that
it can reach its files in any directory, without changing permissions of the user's directories.
Linux only; elsewhere these are no-ops and Postgres must not be started by root.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from collections.abc import Callable
from dataclasses import dataclass

from airbridge.control_plane.local.exceptions import StartFailed

_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True)
class User:
    """Uid and gid to run as."""

    uid: int
    gid: int


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def postgres_user() -> User | None:
    """Return the user to run Postgres as, or None if this process is not root."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError as error:
        raise StartFailed(
            "postgres", "cannot run as root and there is no user 'nobody'; start as another user"
        ) from error
    return User(entry.pw_uid, entry.pw_gid)


def child_setup(death_signal: int, user: User | None = None) -> Callable[[], None]:
    """Return the function to run between fork and exec. The kernel sends `death_signal` when the parent dies."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    parent = os.getpid()

    def setup() -> None:
        if user is not None:
            _become(libc, user)
        if libc is not None:
            _die_with(libc, parent, death_signal)

    return setup


def die_with(parent: int, death_signal: int) -> None:
    """Have the kernel send this process `death_signal` when its parent dies; end it if the parent has died already."""
    _die_with(ctypes.CDLL(None, use_errno=True), parent, death_signal)


def _die_with(libc: ctypes.CDLL, parent: int, death_signal: int) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    # The parent may have died before prctl took effect: no signal would come then.
    if os.getppid() != parent:
        os._exit(1)


def _become(libc: ctypes.CDLL | None, user: User) -> None:
    """Change to `user`, and keep only CAP_DAC_OVERRIDE across the change and the exec."""
    # Without this bit, setresuid from root would clear the permitted capabilities.
    if libc is not None:
        _check(libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0))
    os.setgroups([])
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    if libc is not None:
        mask = 1 << _CAP_DAC_OVERRIDE
        data = (_CapData * 2)(_CapData(mask, mask, mask), _CapData(0, 0, 0))
        _check(libc.capset(ctypes.byref(_CapHeader(_CAPABILITY_VERSION_3, 0)), data))
        # Only ambient capabilities survive the exec of a program without file capabilities.
        _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
