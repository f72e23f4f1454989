"""Silence of Airflow's scheduler, whose executor places work items and sends them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from airbridge.control_plane.read_model import tasks
from airbridge.control_plane.read_model.diagnosis.cause import ago

SILENT_AFTER: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Silence:
    """Absence of a scheduler. `sentence` has no full stop."""

    sentence: str
    #: Last heartbeat of any scheduler; None if none is running.
    since: datetime | None


def silence(session: Any, now: datetime) -> Silence | None:
    """Return the absence of a scheduler; None if one has sent a heartbeat within `SILENT_AFTER`."""
    seen = tasks.scheduler_seen_at(session)
    if seen is None:
        return Silence("no scheduler is running", None)
    if now - seen <= SILENT_AFTER:
        return None
    return Silence(f"the scheduler has sent no heartbeat for {ago(seen, now)}", seen)
