"""Correction of edge times by the measured clock skew."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

# A skew up to this may be network latency; correcting by it would reorder events wrongly.
NOISE_SECONDS: Final = 0.25


def matters(seconds: float | None) -> bool:
    """Return whether a measured skew is larger than the noise of its measurement."""
    return seconds is not None and abs(seconds) > NOISE_SECONDS


def corrected(at: datetime, seconds: float | None) -> datetime:
    """Convert a time of an edge clock, which is `seconds` ahead, to the control plane's clock."""
    return at - timedelta(seconds=seconds) if seconds is not None and matters(seconds) else at
