"""Files of a folder of DAG code: those that belong to a snapshot, and those that cannot be in one, each with the remedy.

`IGNORED` names (version control, byte code, editors' lock files) are left out without a word. Free of Airflow.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airbridge.core.exceptions import ParseFailure

# Names (of files and directories, at any depth) that are never part of a snapshot.
IGNORED = (".git", ".hg", ".svn", "__pycache__", "*.pyc", ".#*", "*.swp", ".DS_Store")

# Directories in one another, in a snapshot or an environment: what walks them may take a stack frame for each.
MOST_LEVELS = 100


@dataclass(frozen=True)
class Contents:
    """Content of a folder: files as (posix path relative to it, path), sorted, and what is refused at first sight."""

    files: tuple[tuple[str, Path], ...]
    refused: tuple[ParseFailure, ...]


def is_ignored(name: str) -> bool:
    """Return whether a file or directory of this name is left out of snapshots."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in IGNORED)


def survey(root: Path) -> Contents:
    """Return what is in a folder. A directory that cannot be part of a snapshot is refused as a whole."""
    found: list[Path] = []
    refused: list[ParseFailure] = []

    def unreadable(error: OSError) -> None:
        path = Path(error.filename or root)
        refused.append(_refusal(root, path, _cannot_be_read(error)))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        kept = []
        for name in filter(_counts, folders):
            fault = _directory_fault(root, Path(folder, name))
            if fault is None:
                kept.append(name)
            else:
                refused.append(_refusal(root, Path(folder, name), fault))
        folders[:] = kept
        found += [Path(folder, name) for name in filter(_counts, files)]
    return Contents(
        tuple(sorted((path.relative_to(root).as_posix(), path) for path in found)),
        tuple(sorted(refused, key=lambda each: each.file)),
    )


def read(root: Path, name: str, path: Path, largest: int) -> tuple[bytes, bool] | ParseFailure:
    """Return a file's content and whether it is executable, or why it cannot be in a snapshot.

    Raises `FileNotFoundError` for a file that has gone meanwhile.
    """
    fault = _link_fault(root, path) if path.is_symlink() else None
    if fault is None and not _is_utf8(name):
        fault = _NOT_UTF8
    try:
        if fault is None:
            found = path.stat()
            fault = _file_fault(found, largest)
        if fault is None:
            return path.read_bytes(), bool(found.st_mode & stat.S_IXUSR)
    except FileNotFoundError:
        raise
    except OSError as error:
        fault = _cannot_be_read(error)
    return ParseFailure(shown(name), None, fault)


def marks(root: Path) -> Iterator[bytes]:
    """Yield a mark of each file (name, size, times, inode, mode) and of each refused entry: equal while they are."""
    contents = survey(root)
    for name, path in contents.files:
        try:
            found = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                yield repr((name, "nothing")).encode()
            continue
        except OSError as error:
            yield repr((name, error.errno)).encode()
            continue
        # With the change time and the inode: an editor may keep size and modification time.
        mark = (name, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_mode)
        yield repr(mark).encode()
    for refused in contents.refused:
        yield repr(refused).encode()


def shown(name: str) -> str:
    """Return a file's name as text that every database and terminal takes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


_NOT_UTF8 = "has a name that is not UTF-8: rename it"
_LEAVE_IT_OUT = "or remove it from the folder"
_MOVE_IT_UP = f"move it up, {_LEAVE_IT_OUT}"


def _counts(name: str) -> bool:
    return not is_ignored(name)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(root: Path, path: Path, fault: str) -> ParseFailure:
    return ParseFailure(shown(path.relative_to(root).as_posix()), None, fault)


def _directory_fault(root: Path, path: Path) -> str | None:
    if len(path.relative_to(root).parts) > MOST_LEVELS:
        return f"is a directory within {MOST_LEVELS} others: a snapshot has no more; {_MOVE_IT_UP}"
    if path.is_symlink():
        target = shown(str(path.readlink()))
        return (
            f"is a symbolic link to a directory ({target}): a snapshot holds files only; "
            f"copy the directory in, {_LEAVE_IT_OUT}"
        )
    return None if _is_utf8(path.name) else _NOT_UTF8


def _link_fault(root: Path, path: Path) -> str | None:
    target = shown(str(path.readlink()))
    if not path.exists():
        return f"is a symbolic link to {target}, which does not exist: remove the link, or make its target"
    if not Path(os.path.realpath(path)).is_relative_to(root):
        return (
            f"is a symbolic link that leads out of the folder, to {target}: copy the file in, {_LEAVE_IT_OUT}"
        )
    return None


def _file_fault(found: os.stat_result, largest: int) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        return f"is not a regular file but {_kind(found.st_mode)}: a snapshot holds files only; remove it"
    if found.st_size > largest:
        return (
            f"has {found.st_size} bytes: a file of DAG code has at most {largest}; "
            f"move it to a bucket, {_LEAVE_IT_OUT}"
        )
    return None


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFIFO: "a fifo",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _cannot_be_read(error: OSError) -> str:
    return f"cannot be read: {error.strerror}; let the user of this process (uid {os.getuid()}) read it"
