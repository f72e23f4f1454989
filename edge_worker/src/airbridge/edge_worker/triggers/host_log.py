"""Log of a trigger host itself: what its process prints beside the logs of its triggers. It stays on the worker, bounded."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

log = structlog.get_logger(__name__)

MAX_BYTES = 16 * 1024 * 1024
CHECK_SECONDS = 5.0

_PREFIX: Final = "triggers-"


def path_in(directory: Path, bundle: str, version: str) -> Path:
    """Return the file of the host of a bundle's version."""
    return directory / f"{_PREFIX}{quote(bundle, safe='')}-{version.rpartition(':')[2][:12]}.log"


def remove_all(directory: Path) -> None:
    """Delete what hosts of an earlier process left."""
    for path in directory.glob(f"{_PREFIX}*.log"):
        remove(path)


def remove(path: Path) -> None:
    """Delete a host's log."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


async def bound(path: Path) -> None:
    """Empty the file whenever it is larger than `MAX_BYTES`, until cancelled: its writer appends, and goes on at the beginning."""
    while True:
        await asyncio.sleep(CHECK_SECONDS)
        with suppress(OSError):
            size = path.stat().st_size
            if size > MAX_BYTES:
                os.truncate(path, 0)
                log.warning("triggers.host_log_emptied", path=str(path), bytes=size)
