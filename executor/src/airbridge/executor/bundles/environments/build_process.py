"""A running build of an environment: the child process, its scratch directory, and its bounds of time and disk."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

from airbridge.core.sandbox import trees
from airbridge.executor.bundle_settings import PackageSettings
from airbridge.executor.bundles.source import redact

# Disk that a build takes: downloads, the unpacked wheels, the installed tree and the archive.
_DISK_FACTOR: Final = 4
_DISK_BASE_MB: Final = 256
_LOOK_SECONDS: Final = 1.0
_STDERR_TAIL: Final = 2000


class BuildProcess:
    """The child that locks and builds in `scratch`, with the variables `environ`. `close` removes the directory. It does not outlive this process."""

    def __init__(
        self,
        scratch: trees.Scratch,
        inputs: str,
        settings: PackageSettings,
        environ: Mapping[str, str],
    ) -> None:
        self.inputs = inputs
        self.scratch = scratch.path.resolve()
        self._directory = scratch
        self._settings = settings
        self._began = time.monotonic()
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - for `close`
        self._child = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
            [
                *(sys.executable, "-m", "airbridge.executor.bundles.environments._build"),
                *(str(self.scratch), str(os.getpid())),
            ],
            cwd=self.scratch,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            start_new_session=True,
        )

    @property
    def seconds(self) -> float:
        """Age of the build."""
        return time.monotonic() - self._began

    def wait(self, patience: float | None = None) -> str | None:
        """Wait for the end, at most until the build is `patience` seconds old.

        Return what is wrong with how it ended, an empty string if nothing is, or None while it goes on. A build that exceeds its bounds
        of time or disk is ended.
        """
        limit = self._settings.seconds if patience is None else min(patience, self._settings.seconds)
        while (code := self._poll(limit)) is None:
            if exceeded := self._exceeded():
                self._kill()
                return exceeded
            if self.seconds >= limit:
                return None
        return "" if code == 0 else f"the build ended with exit code {code}: {self._last_words()}"

    def close(self) -> None:
        """End the child if it still runs, and remove the scratch directory."""
        self._kill()
        self._stderr.close()
        self._directory.remove()

    def _poll(self, limit: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._child.wait(max(0.0, min(_LOOK_SECONDS, limit - self.seconds)))
        return None

    def _exceeded(self) -> str:
        """Return the bound that the build exceeds, or an empty string."""
        settings = self._settings
        if self.seconds >= settings.seconds:
            return (
                f"locking and building took longer than {settings.seconds:g} s ([airbridge] package_seconds): "
                f"the index {redact(settings.index)} may be hanging"
            )
        most = settings.max_mb * _DISK_FACTOR + _DISK_BASE_MB
        if _megabytes(self.scratch) > most:
            return f"the build needs more than {most:g} MiB of disk, for [airbridge] package_max_mb = {settings.max_mb:g}"
        return ""

    def _last_words(self) -> str:
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - _STDERR_TAIL))
        return redact(self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2])

    def _kill(self) -> None:
        # The group may have members when its leader has ended.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()


def _megabytes(folder: Path) -> float:
    """Return the size of a folder that is being written."""
    total, folders = 0, [os.fspath(folder)]
    while folders:  # not os.walk: the build decides how deep it is
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total / 1024 / 1024
