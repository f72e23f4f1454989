"""The supervisor's own log: structlog events as JSON lines."""

from __future__ import annotations

from pathlib import Path

import structlog


def configure(path: Path) -> None:
    """Send this process' events to the file."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        # Open for the life of the process, which is the supervisor's.
        logger_factory=structlog.WriteLoggerFactory(path.open("a", buffering=1)),
        cache_logger_on_first_use=True,
    )
