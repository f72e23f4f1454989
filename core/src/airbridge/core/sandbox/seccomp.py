"""Seccomp: system calls that a process gives up for good, for itself and all that it will start. No privilege is needed.

Used for what Landlock does not govern: sockets, attributes of files, other processes, namespaces and the kernel's
own interfaces. https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from typing import Final

_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER, _GET_ACTION_AVAIL, _ALL_THREADS = 1, 2, 1
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
# Instructions of classic BPF, all on 32-bit words.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN, _AND = 0x20, 0x15, 0x35, 0x45, 0x06, 0x54

# Offsets in ``struct seccomp_data``.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16

_X32_BIT: Final = 0x40000000
# ``CLONE_NEW*``.
_NEW_NAMESPACES: Final = 0x7E020000

_SOCK_TYPE_MASK, _SOCK_DGRAM = 0xF, 2

_COLUMN: Final = {"x86_64": 0, "aarch64": 1}
_AUDIT: Final = (0xC000003E, 0xC00000B7)
_SECCOMP: Final = (317, 277)
_CLONE, _CLONE3 = (56, 220), 435
_SOCKETPAIR: Final = (53, 199)

# Numbers on x86_64 and aarch64; None where there is no such call. Those from 424 on are the same everywhere.
_Numbers = tuple[int | None, int | None]


def _same(*numbers: int) -> tuple[_Numbers, ...]:
    return tuple((number, number) for number in numbers)


# socket, connect, bind, listen, accept, accept4.
NETWORK: Final[tuple[_Numbers, ...]] = ((41, 198), (42, 203), (49, 200), (50, 201), (43, 202), (288, 242))

ATTRIBUTES: Final[tuple[_Numbers, ...]] = (
    (90, None), (91, 52), (268, 53), (452, 452),  # chmod, fchmod, fchmodat, fchmodat2
    (92, None), (93, 55), (94, None), (260, 54),  # chown, fchown, lchown, fchownat
    (132, None), (235, None), (261, None), (280, 88),  # utime, utimes, futimesat, utimensat
    (188, 5), (189, 6), (190, 7), (197, 14), (198, 15), (199, 16),  # setxattr, removexattr and their kin
    *_same(463, 466, 469),  # setxattrat, removexattrat, file_setattr
)  # fmt: skip

PROCESSES: Final[tuple[_Numbers, ...]] = (
    (101, 117), (310, 270), (311, 271), (312, 272),  # ptrace, process_vm_readv, process_vm_writev, kcmp
    *_same(438, 440),  # pidfd_getfd, process_madvise
)  # fmt: skip

KERNEL: Final[tuple[_Numbers, ...]] = (
    *_same(425, 426, 427),  # io_uring: it opens, connects and sets attributes where no filter sees it
    (321, 280), (298, 241), (323, 282), (250, 219), (248, 217), (249, 218),  # bpf, perf_event_open, userfaultfd, keys
    (165, 40), (166, 39), (155, 41), (272, 97), (308, 268), (161, 51),  # mount, umount2, pivot_root, unshare, setns, chroot
    *_same(428, 429, 430, 431, 432, 433, 442),  # open_tree, move_mount, fsopen and its kin, mount_setattr
    (303, 264), (304, 265),  # name_to_handle_at, open_by_handle_at
    (246, 104), (320, 294), (175, 105), (313, 273), (176, 106), (169, 142),  # kexec, modules, reboot
    (167, 224), (168, 225), (163, 89), (164, 170), (227, 112), (159, 171), (305, 266),  # swap, acct, clocks
    (170, 161), (171, 162), (179, 60), (172, None), (173, None), (103, 116), (153, 58),  # names, quota, ports, syslog
)  # fmt: skip

# Calls that change another process of the same user without being its tracer, which neither Landlock nor non-dumpable
# processes prevent, with the arguments by which they are about the caller: prlimit64 (a limit of CPU time kills),
# setpriority, ioprio_set, sched_setaffinity, sched_setscheduler, sched_setparam, sched_setattr.
_Own = tuple[_Numbers, dict[int, int]]
LIMITS: Final[_Own] = ((302, 261), {0: 0})
OTHERS: Final[tuple[_Own, ...]] = (
    LIMITS,
    ((141, 140), {0: 0, 1: 0}),
    ((251, 30), {0: 1, 1: 0}),
    *(((number, other), {0: 0}) for number, other in ((203, 122), (144, 119), (142, 118), (314, 274))),
)
# prlimit64 of the 32-bit programs that a machine runs as well: i386, arm.
_LIMITS_32: Final = (340, 369)

# setsid, setpgid: what cannot leave its process group can be killed by it.
SESSIONS: Final[tuple[_Numbers, ...]] = ((112, 157), (109, 154))

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction)))


def available() -> bool:
    """Return whether this kernel filters system calls, and this machine's numbers are known."""
    if platform.system() != "Linux" or platform.machine() not in _COLUMN:
        return False
    action = ctypes.c_uint32(_ERRNO)
    return int(_LIBC.syscall(_SECCOMP[_column()], _GET_ACTION_AVAIL, 0, ctypes.byref(action))) == 0


def deny(
    *families: tuple[_Numbers, ...],
    own: tuple[_Own, ...] = (),
    namespaces: bool = True,
    datagrams: bool = False,
) -> None:
    """Have the system calls of `families` fail with EPERM from now on, in all threads.

    `own`: calls that are allowed for the caller itself alone. `namespaces`: refuse to make any. `datagrams`: allow
    pairs of datagram sockets (which can send to any socket's path).
    Calls of another machine's numbering fail too. Raises `OSError` where the kernel refuses the filter.
    """
    column = _column()
    numbers = [numbers[column] for family in families for numbers in family]
    _install(
        _program(column, [number for number in numbers if number is not None], own, namespaces, datagrams)
    )


def keep_to_own_limits() -> None:
    """Have no process below this one set limits of another: of CPU time it would kill it. Raises `OSError`.

    All else stays as it is, 32-bit programs included.
    """
    column = _column()
    native = _only(LIMITS[0][column] or 0, LIMITS[1])
    if column == 0:
        native += _only((LIMITS[0][0] or 0) | _X32_BIT, LIMITS[1])
    number, allow = _Instruction(_LOAD, 0, 0, _NUMBER), _Instruction(_RETURN, 0, 0, _ALLOW)
    native = [number, *native, allow]
    _install(
        [
            _Instruction(_LOAD, 0, 0, _ARCHITECTURE),
            _Instruction(_IF_EQUAL, 0, len(native), _AUDIT[column]),
            *native,
            *[number, *_only(_LIMITS_32[column], LIMITS[1]), allow],
        ]
    )


def _install(program: list[_Instruction]) -> None:
    column = _column()
    array = (_Instruction * len(program))(*program)
    _checked(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    filter_ = _Program(len(program), array)
    _checked(_LIBC.syscall(_SECCOMP[column], _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(filter_)))


def _only(number: int, arguments: dict[int, int]) -> list[_Instruction]:
    """Return instructions that allow a call with these arguments, and no other call of this number."""
    body: list[_Instruction] = []
    for argument, value in arguments.items():
        body += [
            _Instruction(_LOAD, 0, 0, _FIRST_ARGUMENT + 8 * argument),
            _Instruction(_IF_EQUAL, 1, 0, value),
            _Instruction(_RETURN, 0, 0, _ERRNO | errno.EPERM),
        ]
    body.append(_Instruction(_RETURN, 0, 0, _ALLOW))
    return [_Instruction(_IF_EQUAL, 0, len(body), number), *body]


def _program(
    column: int, numbers: list[int], own: tuple[_Own, ...], namespaces: bool, datagrams: bool
) -> list[_Instruction]:
    not_permitted, unknown = (
        _Instruction(_RETURN, 0, 0, _ERRNO | code) for code in (errno.EPERM, errno.ENOSYS)
    )
    program = [
        _Instruction(_LOAD, 0, 0, _ARCHITECTURE),
        _Instruction(_IF_EQUAL, 1, 0, _AUDIT[column]),
        unknown,
        _Instruction(_LOAD, 0, 0, _NUMBER),
    ]
    if column == 0:
        program += [_Instruction(_IF_AT_LEAST, 0, 1, _X32_BIT), unknown]
    for number in numbers:
        program += [_Instruction(_IF_EQUAL, 0, 1, number), not_permitted]
    for each, arguments in own:
        if (known := each[column]) is not None:
            program += _only(known, arguments)
    if namespaces:
        # clone3 has its flags in memory, where no filter can see them: without it, libraries use clone.
        program += [
            _Instruction(_IF_EQUAL, 0, 1, _CLONE3),
            unknown,
            _Instruction(_IF_EQUAL, 0, 4, _CLONE[column]),
            _Instruction(_LOAD, 0, 0, _FIRST_ARGUMENT),
            _Instruction(_IF_ANY_BIT, 0, 1, _NEW_NAMESPACES),
            not_permitted,
            _Instruction(_RETURN, 0, 0, _ALLOW),
        ]
    if not datagrams:
        program += [
            _Instruction(_IF_EQUAL, 0, 4, _SOCKETPAIR[column]),
            _Instruction(_LOAD, 0, 0, _FIRST_ARGUMENT + 8),
            _Instruction(_AND, 0, 0, _SOCK_TYPE_MASK),
            _Instruction(_IF_EQUAL, 0, 1, _SOCK_DGRAM),
            not_permitted,
        ]
    return [*program, _Instruction(_RETURN, 0, 0, _ALLOW)]


def _column() -> int:
    return _COLUMN[platform.machine()]


def _checked(result: int) -> None:
    if result > 0:
        raise OSError(errno.EBUSY, f"seccomp: thread {result} has a filter of its own")
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")
