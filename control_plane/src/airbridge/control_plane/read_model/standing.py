"""Standing of a worker: whether it accepts work, and the first reason why not. Pages, commands, causes and metrics share it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from airbridge.control_plane.read_model.platform import Platform
from airbridge.core.compatibility import Verdict
from airbridge.core.protocol import WorkerState


class Standing(StrEnum):
    """Standing of a worker: whether it accepts work, and the first reason why not."""

    REVOKED = "revoked"
    #: It announced its stop, and has sent no heartbeat since.
    STOPPED = "stopped"
    #: It sends no heartbeats and did not announce a stop: disconnected, or dead.
    SILENT = "silent"
    #: It has missed two heartbeats: probably disconnected or dead, and no longer expected to take work.
    STALE = "stale"
    #: The compatibility matrix refuses it.
    REFUSED = "refused"
    #: The compatibility matrix lets it finish its tasks, but claim no more.
    DRAIN_ONLY = "drain_only"
    #: It finishes its tasks, ordered by an operator or by itself.
    DRAINING = "draining"
    #: It sends heartbeats, and reports that it cannot receive from its queue.
    NO_QUEUE = "no_queue"
    SERVING = "serving"

    @property
    def alive(self) -> bool:
        """True if it sends heartbeats."""
        return self not in {Standing.REVOKED, Standing.STOPPED, *MISSING}

    @property
    def text(self) -> str:
        """Standing in words, for the end of a sentence."""
        return _STANDING_TEXT[self]


# Standings that an operator should look into.
TROUBLED: Final = frozenset(
    {Standing.SILENT, Standing.STALE, Standing.REFUSED, Standing.DRAIN_ONLY, Standing.NO_QUEUE}
)
# Standings of workers that should send heartbeats and do not.
MISSING: Final = (Standing.SILENT, Standing.STALE)

_STANDING_TEXT: Final = {
    Standing.REVOKED: "revoked",
    Standing.STOPPED: "stopped",
    Standing.SILENT: "silent",
    Standing.STALE: "stale",
    Standing.REFUSED: "refused by the matrix",
    Standing.DRAIN_ONLY: "drain only by the matrix",
    Standing.DRAINING: "draining",
    Standing.NO_QUEUE: "without its queue",
    Standing.SERVING: "serving",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Values of a worker's row that its standing depends on."""

    state: str
    wanted: str
    heartbeat_at: datetime | None
    queue_error: str | None


def standing_of(report: Report, verdict: Verdict, platform: Platform, now: datetime) -> Standing:
    """Return the standing of a worker with this report and verdict at `now`."""
    if report.wanted == "revoked":
        return Standing.REVOKED
    silence = None if report.heartbeat_at is None else now - report.heartbeat_at
    if silence is None or silence > platform.stale_after:
        if report.state == WorkerState.STOPPING:
            return Standing.STOPPED
        return Standing.SILENT if silence is None or silence > platform.alive_after else Standing.STALE
    if verdict is Verdict.REFUSE:
        return Standing.REFUSED
    if verdict is Verdict.DRAIN:
        return Standing.DRAIN_ONLY
    if report.wanted != "active" or report.state != WorkerState.ACTIVE:
        return Standing.DRAINING
    if report.queue_error is not None:
        return Standing.NO_QUEUE
    return Standing.SERVING
