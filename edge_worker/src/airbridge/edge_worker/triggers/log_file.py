"""A trigger's log, which the agent writes: no limit of the host's process holds it, so it has one here."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from airbridge.edge_worker.work import outcome

MAX_BYTES: Final = 64 * 1024 * 1024


def append(path: Path, line: bytes, at: datetime, *, most: int = MAX_BYTES) -> bool:
    """Append a line; return False if nothing was written because the log is full.

    In place of a line that would make it larger than `most` bytes there is one, of time `at`, with the reason. Raises `OSError`.
    """
    with path.open("ab") as file:
        size = file.tell()
        if size >= most:
            return False
        if size + len(line) < most:
            file.write(line.rstrip(b"\n") + b"\n")
            return True
    why = f"a line of {len(line)} bytes is left out: the log of a trigger has at most {most} bytes"
    outcome.append_to_log(path, at, why)
    return True
