"""The worker's disk: its free space, and a reserve file that is deleted for results when there is none."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Container
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from airbridge.edge_worker.exceptions import SettingsError, StartError
from airbridge.edge_worker.settings import MIB

log = structlog.get_logger(__name__)

# Errors of a state_dir that no worker could use. Others, as of a full or missing disk, may pass.
_WRONG_PLACE: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
DIRECTORY_MODE = 0o700
# Of a directory that another user's tasks must get through, to code or to a working directory whose name they
# know.
PASSABLE_MODE = 0o711


class Disk:
    """The disk under `state_dir`. `release_reserve` is called when the journal finds it full."""

    def __init__(
        self, state_dir: Path, *, reserve_mib: int, min_free_mib: int, passable: Container[Path] = ()
    ) -> None:
        self._state_dir = state_dir
        self._reserve = state_dir / "reserve"
        self._reserve_bytes = reserve_mib * MIB
        self._min_free_bytes = min_free_mib * MIB
        self._passable = passable
        self._lock: int | None = None

    def prepare(self, *directories: Path) -> None:
        """Make the directories and lock the state: one agent at a time. Raises `SettingsError` or `StartError`."""
        try:
            for directory in (self._state_dir, *directories):
                directory.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
                directory.chmod(PASSABLE_MODE if directory in self._passable else DIRECTORY_MODE)
            self._lock = os.open(self._state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # The kernel releases the lock with the process, however that ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StartError(
                f"state_dir {self._state_dir} is in use by another worker; each needs its own"
            ) from error
        except OSError as error:
            kind = SettingsError if error.errno in _WRONG_PLACE else StartError
            raise kind(
                f"state_dir {self._state_dir} cannot be used: {error.strerror}; it must be a writable directory"
            ) from error
        self.keep_reserve()

    def close(self) -> None:
        """Unlock the state."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def free_bytes(self) -> int:
        """Free bytes of the file system."""
        return shutil.disk_usage(self._state_dir).free

    @property
    def has_space(self) -> bool:
        """Return whether enough is free to take on new work."""
        return self.free_bytes >= self._min_free_bytes

    def keep_reserve(self) -> None:
        """Create the reserve, unless it exists or there is too little space."""
        if self._reserve.exists() or not self._reserve_bytes:
            return
        if self.free_bytes < self._min_free_bytes + 2 * self._reserve_bytes:
            return
        try:
            descriptor = os.open(self._reserve, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                # Allocated, not written: a sparse file would reserve nothing.
                os.posix_fallocate(descriptor, 0, self._reserve_bytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._reserve.unlink(missing_ok=True)
            log.warning("disk.no_reserve", detail=str(error))

    def release_reserve(self) -> bool:
        """Delete the reserve, so that results can be written. False if it did not exist."""
        with suppress(FileNotFoundError):
            self._reserve.unlink()
            log.error("disk.reserve_released", free_bytes=self.free_bytes)
            return True
        return False
