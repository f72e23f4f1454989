"""Log of the supervisor: structlog events as JSON lines."""

from __future__ import annotations

from pathlib import Path

import structlog


def configure(path: Path) -> None:
    """Write this process's events to the file."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        # Never closed: the process is the supervisor.
        logger_factory=structlog.WriteLoggerFactory(path.open("a", buffering=1)),
        cache_logger_on_first_use=True,
    )
