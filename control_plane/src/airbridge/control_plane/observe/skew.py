"""The edge's clocks: when a reading is corrected by the skew that was measured."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

NOISE_SECONDS: Final = 0.25
"""A skew up to this is what a request's way explains; correcting by it would put things out of order, not in order."""


def matters(seconds: float | None) -> bool:
    """Whether a measured skew says something of the clock."""
    return seconds is not None and abs(seconds) > NOISE_SECONDS


def corrected(at: datetime, seconds: float | None) -> datetime:
    """Return a reading of an edge's clock on the control plane's, given how far that clock is ahead."""
    return at - timedelta(seconds=seconds) if seconds is not None and matters(seconds) else at
