"""A process's own view of the file system: directories that are covered, and others that are shown or read-only.

A directory above something hidden can be listed and written to only where what is hidden is not there. Landlock has no way to say so:
a right on a directory holds for all beneath it. Nor does it govern attributes of files: with it alone, a process of the owner can
change modes, times and extended attributes of files that it may not open. On a read-only mount the kernel refuses those
as well. Views are made in a mount namespace of the process's own, and without privileges in a user namespace of its own, where the
kernel and the container's seccomp profile permit that.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from airbridge.core.sandbox import capabilities, hardening

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_CLONE_NEWNS: Final = 0x00020000
_CLONE_NEWUSER: Final = 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 4096, 16384, 1 << 19
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_RDONLY: Final = 1

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class Shown(NamedTuple):
    """A directory that is shown, with all beneath it, at a place of the view. Both paths may be the same."""

    path: str
    at: str
    writable: bool = False


class View(NamedTuple):
    """Changes to the file system for one process. Paths are absolute, and without symbolic links."""

    #: Directories in whose place an empty one is seen, but for what is shown beneath them.
    covered: tuple[str, ...] = ()
    #: What does not exist is passed over.
    shown: tuple[Shown, ...] = ()
    #: Paths that become read-only. Those that do not exist are passed over.
    read_only: tuple[str, ...] = ()
    #: Directories that nobody with this view can rename or remove.
    pinned: tuple[str, ...] = ()
    #: Symbolic links beneath covered directories: the link, and what it leads to.
    links: tuple[tuple[str, str], ...] = ()


def available(uid: int | None = None) -> bool:
    """Return whether a process of this user (None: of this process's) can have a view; found out by a child."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            enter(View(covered=("/usr/share",), shown=(Shown("/usr/lib", "/usr/share/lib"),)))
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGKILL)  # no exit handlers of the parent's
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGUSR1


def enter(view: View) -> None:
    """Give this process, and all that it will start, a view of the file system.

    To be called by a process with one thread, before it enters a Landlock domain (which forbids to mount) and before it opens
    directories that it keeps: through those it would see what was there before. A process without CAP_SYS_ADMIN has
    no capabilities afterwards. Raises `OSError` where that cannot be had; the process is of no use then.
    """
    privileged = capabilities.holds(capabilities.SYS_ADMIN)
    _separate(privileged)
    _checked(_LIBC.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None))
    trees = [(_tree(shown), shown) for shown in view.shown if Path(shown.path).is_dir()]
    for path in (*sorted(view.pinned), *sorted(set(view.read_only))):
        if os.path.lexists(path):
            place = os.fsencode(path)
            _checked(_LIBC.mount(place, place, None, _MS_BIND | _MS_REC, None))
    for path in view.read_only:
        if os.path.lexists(path):
            _set_read_only(_AT_FDCWD, path, _AT_RECURSIVE)
    _cover(view, trees)
    _find_working_directory()
    if not privileged:
        capabilities.drop(frozenset())  # those that came with the user namespace


def _cover(view: View, trees: list[tuple[int, Shown]]) -> None:
    for path in view.covered:
        place, options = os.fsencode(path), b"mode=0711,size=1m"
        _checked(_LIBC.mount(b"tmpfs", place, b"tmpfs", _MS_NOSUID | _MS_NODEV, options))
    for fd, shown in trees:
        Path(shown.at).mkdir(parents=True, exist_ok=True)
        _checked(
            _LIBC.syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, os.fsencode(shown.at), _MOVE_MOUNT_F_EMPTY_PATH)
        )
        os.close(fd)
    for link, target in view.links:
        os.symlink(target, link)  # noqa: PTH211 - paths are text here
    for path in view.covered:
        _set_read_only(_AT_FDCWD, path, 0)


def _find_working_directory() -> None:
    """Move to what is now seen at the path of the working directory, which is still that of before."""
    try:
        os.chdir(Path.cwd())
    except OSError:
        os.chdir("/")


def _separate(privileged: bool) -> None:
    """Move this process into its own mount namespace; without privileges, in a user namespace that maps only its own ids."""
    if privileged:
        _checked(_LIBC.unshare(_CLONE_NEWNS))
        return
    uid, gid = os.geteuid(), os.getegid()
    _checked(_LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
    dumpable = hardening.is_dumpable()
    with hardening.own_proc_entries():
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path("/proc/self", name).write_text(text)
    if dumpable:
        hardening.soften()


def _tree(shown: Shown) -> int:
    """Return a descriptor of a copy of the mount at a path, read-only if it is to be."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    fd = _checked(_LIBC.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(shown.path), flags))
    if not shown.writable:
        _set_read_only(fd, "", _AT_RECURSIVE | _AT_EMPTY_PATH)
    return fd


def _set_read_only(fd: int, path: str, flags: int) -> None:
    attributes = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    _checked(_LIBC.syscall(_MOUNT_SETATTR, fd, os.fsencode(path), flags, ctypes.byref(attributes), size))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"private mounts: {os.strerror(number)}")
    return int(result)
