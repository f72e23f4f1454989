"""Landlock: how a Linux process gives up rights for good, for itself and all it will start. No privilege is needed.

A domain grants access beneath a set of paths and to nothing else. A process inside a domain cannot trace or look into
a process outside of it, root or not. The kernel's API: https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import platform
import stat
from collections.abc import Iterable
from contextlib import suppress
from enum import IntFlag
from pathlib import Path
from typing import Final, NamedTuple

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_QUERY_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
# Where the system calls have the numbers above: everywhere but on alpha.
_MACHINES: Final = frozenset({"x86_64", "aarch64"})

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class Access(IntFlag):
    """``LANDLOCK_ACCESS_FS_*``."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


READ: Final = Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
_OF_FILES: Final = Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
_FIRST_ABI: Final = Access.REFER - 1
_EVERY_RIGHT: Final = (Access.IOCTL_DEV << 1) - 1

# Flags to open a path that is only named in a rule.
_TO_NAME: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_NET_BIND_TCP: Final = 1 << 0
_NET_CONNECT_TCP: Final = 1 << 1
# The ABI from which a domain can also close off TCP.
NETWORK_SINCE: Final = 4

_SCOPE_ABSTRACT_SOCKETS: Final = 1 << 0
_SCOPE_SIGNALS: Final = 1 << 1
# The ABI from which a domain can also close off signals and abstract UNIX sockets.
SCOPES_SINCE: Final = 6


class _RulesetAttr(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneathAttr(ctypes.Structure):
    # struct landlock_path_beneath_attr is packed: 12 bytes, not 16.
    _pack_ = 1
    _fields_ = (("access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def abi() -> int:
    """Return the version of Landlock that this kernel offers; 0 if it offers none."""
    if platform.system() != "Linux" or platform.machine() not in _MACHINES:
        return 0
    return max(0, int(_LIBC.syscall(_CREATE_RULESET, None, 0, _QUERY_VERSION)))


def everything(version: int) -> Access:
    """Return all rights of this version of Landlock."""
    known = Access(_FIRST_ABI)
    if version >= 2:
        known |= Access.REFER
    if version >= 3:
        known |= Access.TRUNCATE
    if version >= 5:
        known |= Access.IOCTL_DEV
    return known


class Domain:
    """A domain in the making: grant what is to remain, then `enter`. Raises `OSError` where the kernel refuses.

    It has TCP, unless `network` is false, and cannot signal processes outside, unless `signals` is true.
    """

    def __init__(self, handled: Access, version: int, *, network: bool = True, signals: bool = False) -> None:
        self._handled = handled & everything(version)
        scoped = 0
        if version >= SCOPES_SINCE:
            scoped = _SCOPE_ABSTRACT_SOCKETS if signals else _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS
        closed = 0 if network or version < NETWORK_SINCE else _NET_BIND_TCP | _NET_CONNECT_TCP
        attributes = _RulesetAttr(int(self._handled), closed, scoped)
        # The structure grew with the ABI: the kernel refuses (E2BIG) fields that it does not have.
        size = 24 if version >= SCOPES_SINCE else 16 if version >= NETWORK_SINCE else 8
        self._fd = _checked(
            _LIBC.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
        )

    def grant(self, path: Path | str, rights: Access) -> None:
        """Keep `rights` beneath `path`. What is not there, or is a symbolic link, is passed over."""
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            fd = os.open(path, _TO_NAME)
            try:
                self._add(fd, rights & self._handled)
            finally:
                os.close(fd)

    def grant_opened(self, places: Iterable[PathRule]) -> None:
        """Keep rights beneath places that were `opened` before: a system call each, and no path is walked."""
        rule = _PathBeneathAttr()
        reference, handled = ctypes.byref(rule), int(self._handled)
        for place in places:
            rule.access, rule.parent_fd = place.rights & handled, place.fd
            _checked(_LIBC.syscall(_ADD_RULE, self._fd, _PATH_BENEATH, reference, 0))

    def _add(self, fd: int, rights: Access) -> None:
        rights &= _possible(os.fstat(fd).st_mode)
        if rights:
            rule = _PathBeneathAttr(int(rights), fd)
            _checked(_LIBC.syscall(_ADD_RULE, self._fd, _PATH_BENEATH, ctypes.byref(rule), 0))

    def enter(self) -> None:
        """Be inside from now on. Takes away the right to gain privileges by executing a set-user-id program."""
        _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked(_LIBC.syscall(_RESTRICT_SELF, self._fd, 0))
        os.close(self._fd)


class PathRule(NamedTuple):
    """A place that is open, to be granted later: its descriptor, what can be granted there, and what it is."""

    fd: int
    rights: int
    device: int
    inode: int

    @property
    def there(self) -> bool:
        """Return whether the descriptor still refers to the same file."""
        try:
            found = os.fstat(self.fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.inode)


def opened(paths: Iterable[str], rights: Access) -> tuple[PathRule, ...]:
    """Open paths for `Domain.grant_opened`, with what of `rights` can be granted there.

    What `Domain.grant` passes over is not among them.
    """
    places = []
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            fd = os.open(path, _TO_NAME)
            found = os.fstat(fd)
            if possible := rights & _possible(found.st_mode):
                places.append(PathRule(fd, int(possible), found.st_dev, found.st_ino))
            else:
                os.close(fd)
    return tuple(places)


def _possible(mode: int) -> Access:
    """Return the rights that there can be on a place of this mode and beneath."""
    if stat.S_ISLNK(mode):
        return Access(0)
    return Access(_EVERY_RIGHT) if stat.S_ISDIR(mode) else _OF_FILES


def all_but(hidden: Iterable[Path]) -> tuple[str, ...]:
    """Return paths that together hold everything except what is beneath `hidden` (real paths).

    Landlock only has grants. So the directories above a hidden path cannot be granted themselves, but each of their
    entries can: nothing can be made or listed in those directories then, and what others put there later is not seen.
    """
    hidden = frozenset(hidden)
    if not hidden:
        return ("/",)
    above = {parent for path in hidden for parent in path.parents}
    inside = {path for path in above if not hidden.isdisjoint((path, *path.parents))}
    found = (directory / entry for directory in above - inside for entry in _entries(directory))
    return tuple(str(path) for path in found if path not in above and path not in hidden)


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208 - names are all that is wanted, a thousand times a minute
    except OSError:
        return []


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return int(result)
