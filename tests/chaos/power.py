"""Model of a power cut for SQLite databases: a copy of each file in its last synced state.

The kernel keeps what a killed process wrote; a power cut does not. `keep_what_is_synced` puts itself between SQLite and
the operating system, in SQLite's own way (https://www.sqlite.org/vfs.html): of each file under the database's name,
the method `xSync` is wrapped, and after a sync that succeeded the file is copied. What was written and never synced is
in no copy. `restore` then puts the copies in place, as the machine would find them when power is back.

The model is the harshest that an honest disk allows: everything synced is there, nothing else is.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SUFFIXES = ("", "-wal")
_METHOD_SLOTS = 19  # sqlite3_io_methods, version 3
_SYNC_SLOT = 5  # iVersion, xClose, xRead, xWrite, xTruncate, xSync


class _Vfs(ctypes.Structure):
    """The beginning of sqlite3_vfs."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("max_path", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("app_data", ctypes.c_void_p),
        ("open", ctypes.c_void_p),
    )


_Open = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_kept_alive: list[Any] = []


class SqliteNotSharedError(RuntimeError):
    """Python's sqlite3 module brings an SQLite of its own: its file layer cannot be reached."""


def keep_what_is_synced(database: Path, durable: Path) -> None:
    """From now on, `durable` holds what a power cut would leave of `database`. For this process, once."""
    paths = {str(database.absolute()) + suffix: durable / (database.name + suffix) for suffix in _SUFFIXES}
    vfs = _default_vfs()
    open_before = _Open(vfs.open)
    methods: dict[int, ctypes.Array[ctypes.c_void_p]] = {}
    files: dict[int, tuple[Path, Path, Callable[[int, int], int]]] = {}

    def sync(file: int, flags: int) -> int:
        path, copy, sync_before = files[file]
        status = sync_before(file, flags)
        if status == sqlite3.SQLITE_OK:
            _replace(path, copy)
        return status

    def open_file(vfs_at: int, name: bytes | None, file: int, flags: int, out: int | None) -> int:
        status: int = open_before(vfs_at, name, file, flags, out)
        path = os.fsdecode(name) if name else ""
        if status == sqlite3.SQLITE_OK and path in paths:
            table = ctypes.c_void_p.from_address(file)
            assert table.value is not None
            if table.value not in methods:
                methods[table.value] = _with_sync(table.value, wrapped)
            before = _Sync(ctypes.c_void_p.from_address(table.value + _SYNC_SLOT * 8).value)
            files[file] = (Path(path), paths[path], before)
            table.value = ctypes.addressof(methods[table.value])
        return status

    wrapped, opened = _Sync(sync), _Open(open_file)
    _kept_alive.extend((wrapped, opened, open_before, methods, files))
    vfs.open = ctypes.cast(opened, ctypes.c_void_p).value


def restore(database: Path, durable: Path, *, mark_survives: bool) -> None:
    """Put the files back as a power cut leaves them. No process may have them open.

    The mark beside the journal is never synced: whether it survives is chance.
    """
    for suffix in (*_SUFFIXES, "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
        kept = durable / (database.name + suffix)
        if kept.exists():
            shutil.copyfile(kept, f"{database}{suffix}")
    if not mark_survives:
        Path(f"{database}.mark").unlink(missing_ok=True)


def _default_vfs() -> _Vfs:
    library = ctypes.CDLL(_library())
    library.sqlite3_vfs_find.restype = ctypes.POINTER(_Vfs)
    library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
    found: _Vfs = library.sqlite3_vfs_find(None).contents
    return found


def _library() -> str:
    """The shared library that Python's sqlite3 module is linked with."""
    module = getattr(_sqlite3, "__file__", None)
    listed = subprocess.run(["ldd", module], capture_output=True, text=True, check=False) if module else None
    for line in listed.stdout.splitlines() if listed else ():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow and name.startswith("libsqlite3"):
            return rest.split(" ")[0]
    raise SqliteNotSharedError(f"{module or 'a builtin _sqlite3'} is not linked with a shared libsqlite3")


def _with_sync(table: int, sync: Any) -> ctypes.Array[ctypes.c_void_p]:
    copy = (ctypes.c_void_p * _METHOD_SLOTS)()
    ctypes.memmove(copy, table, ctypes.sizeof(copy))
    copy[_SYNC_SLOT] = ctypes.cast(sync, ctypes.c_void_p).value
    return copy


def _replace(path: Path, copy: Path) -> None:
    temporary = copy.with_name(copy.name + ".new")
    shutil.copyfile(path, temporary)
    temporary.replace(copy)
