"""Removal of directories that code of others has written to, whatever it left there.

`shutil.rmtree` takes a stack frame, and a descriptor, for each level: a few thousand levels end it with `RecursionError`, and no
path reaches them all. Here a tree is taken apart at the top: each directory that is not empty is moved there, and
emptied.
"""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
import time
import weakref
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import structlog

# Seconds for which a removal goes on: what is still being written to has no end.
SECONDS: Final = 120.0

_TO_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TO_NAME: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Names of the top directory that are read at once.
_AT_ONCE: Final = 1000

log = structlog.get_logger(__name__)


def remove(path: Path, *, seconds: float = SECONDS) -> None:
    """Remove a directory and all that is in it; nothing happens if it is not there. Links are removed, and not followed.

    Raises `OSError` if something cannot be removed, once the rest is; `TimeoutError` if it takes longer than `seconds`.
    """
    try:
        parent = os.open(path.parent, _TO_NAME & ~os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        top = _opened(path.name, parent)
        try:
            _Removal(top, time.monotonic() + seconds).run()
        finally:
            os.close(top)
        os.rmdir(path.name, dir_fd=parent)
    except FileNotFoundError:
        return
    finally:
        os.close(parent)


def discard(path: Path, *, seconds: float = SECONDS) -> None:
    """Do the same as `remove`, but only log what cannot be removed."""
    try:
        remove(path, seconds=seconds)
    except OSError as error:
        log.warning("tree.not_removed", path=str(path), detail=str(error))


class Scratch:
    """New directory for code of others to write to, removed at the end of the block, by `remove`, or with this object."""

    def __init__(self, prefix: str, parent: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._removal = weakref.finalize(self, discard, self.path)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the directory. Never raises."""
        self._removal()


class _Removal:
    """Removal of all that is in one directory, by its descriptor."""

    def __init__(self, top: int, deadline: float) -> None:
        self._top = top
        self._deadline = deadline
        self._prefix = f".{secrets.token_hex(8)}-"
        self._moved = 0
        self._failed: dict[str, OSError] = {}

    def run(self) -> None:
        """Remove it all. Raises the first error."""
        _permit(self._top)
        while names := self._next_names():
            for name in names:
                self._check_time()
                try:
                    self._take_apart(name)
                except OSError as error:
                    self._failed[name] = error
        if self._failed:
            raise next(iter(self._failed.values()))

    def _next_names(self) -> list[str]:
        with os.scandir(self._top) as entries:
            return list(islice((each.name for each in entries if each.name not in self._failed), _AT_ONCE))

    def _take_apart(self, name: str) -> None:
        """Remove an entry of the top directory; the directories in it are moved to the top, where their turn comes."""
        try:
            folder = _opened(name, self._top)
        except NotADirectoryError:
            os.unlink(name, dir_fd=self._top)
            return
        try:
            _permit(folder)
            self._empty(folder)
            while not _gone(name, self._top):
                # A file system may leave entries out of a list while others are removed from it.
                self._empty(folder)
        finally:
            os.close(folder)

    def _empty(self, folder: int) -> None:
        """Remove or move away what is in a directory. Raises the first error, once the rest is gone."""
        first: OSError | None = None
        with os.scandir(folder) as entries:
            for entry in entries:
                self._check_time()
                try:
                    if entry.is_dir(follow_symlinks=False):
                        self._lift(entry.name, folder)
                    else:
                        os.unlink(entry.name, dir_fd=folder)
                except OSError as error:
                    first = first or error
        if first is not None:
            raise first

    def _lift(self, name: str, folder: int) -> None:
        if _gone(name, folder):
            return
        self._moved += 1
        place = f"{self._prefix}{self._moved}"
        try:
            os.rename(name, place, src_dir_fd=folder, dst_dir_fd=self._top)
        except PermissionError:  # its own mode forbids that it gets another parent
            _permit_named(name, folder)
            os.rename(name, place, src_dir_fd=folder, dst_dir_fd=self._top)

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise TimeoutError(
                errno.ETIMEDOUT, "the tree is so large, or written to, that its removal was given up"
            )


def _gone(name: str, parent: int) -> bool:
    """Remove a directory; False if it is not empty."""
    try:
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True


def _opened(name: str, parent: int) -> int:
    """Open a directory, whose mode may forbid that. Raises `NotADirectoryError` for anything else, links included."""
    try:
        return os.open(name, _TO_LIST, dir_fd=parent)
    except PermissionError:
        _permit_named(name, parent)
        return os.open(name, _TO_LIST, dir_fd=parent)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, "a symbolic link") from error
        raise


def _permit(folder: int) -> None:
    """Let this process remove what is in a directory, if it is its owner."""
    with suppress(PermissionError):
        os.fchmod(folder, 0o700)


def _permit_named(name: str, parent: int) -> None:
    """Do the same with a directory that may not be opened."""
    named = os.open(name, _TO_NAME, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{named}", 0o700)  # noqa: PTH101 - a descriptor that cannot be written to
    finally:
        os.close(named)
