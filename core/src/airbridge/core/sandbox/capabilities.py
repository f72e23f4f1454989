"""Capabilities of root, dropped from task processes down to those of a Docker container without device nodes."""

from __future__ import annotations

import ctypes
import os
from typing import Final

_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_VERSION_3: Final = 0x20080522

# chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot,
# audit_write, setfcap. Gone are sys_admin, sys_ptrace, perfmon, sys_rawio, sys_module, mknod and the like.
KEPT: Final = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31})

# dac_read_search: root without it reads only what the file's mode lets it read.
READ_ANY: Final = frozenset({2})

SYS_ADMIN: Final = 21

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def drop(kept: frozenset[int] = KEPT) -> None:
    """Keep of this process's capabilities only `kept`, for good. Does nothing for a process without capabilities."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    _checked(_LIBC.capget(ctypes.byref(header), data))
    if not any(word.permitted for word in data):
        return
    # The bounding set before the others: dropping from it needs CAP_SETPCAP.
    number = 0
    while (held := _LIBC.prctl(_PR_CAPBSET_READ, number, 0, 0, 0)) >= 0:
        if held and number not in kept:
            _LIBC.prctl(
                _PR_CAPBSET_DROP, number, 0, 0, 0
            )  # refused without setpcap, and then there is no need
        number += 1
    for index, word in enumerate(data):
        mask = sum(1 << (each - 32 * index) for each in kept if each // 32 == index)
        word.effective &= mask
        word.permitted &= mask
        word.inheritable = 0
    _checked(_LIBC.capset(ctypes.byref(header), data))


def holds(capability: int) -> bool:
    """Return whether this process has a capability."""
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    _checked(_LIBC.capget(ctypes.byref(header), data))
    return bool(data[capability // 32].effective & 1 << capability % 32)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capabilities: {os.strerror(number)}")
