"""Log of the supervisor: structlog events as JSON lines."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TextIO, cast

import structlog


class _LogFile:
    """File that is appended to. What a full disk does not take is lost: it must not end the supervisor."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def write(self, text: str) -> None:
        """Append the text."""
        with suppress(OSError):
            os.write(self._descriptor, text.encode())

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


def configure(path: Path) -> None:
    """Write this process's events to the file."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        # Never closed: the process is the supervisor.
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _LogFile(path))),
        cache_logger_on_first_use=True,
    )
