"""Times of a final state, from a worker's clock to the control plane's.

Airflow computes with them: a retry is due its delay after `end_date`, a sensor runs again at `reschedule_date`, and the duration is the
difference to a start by the control plane's clock.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from pydantic import AwareDatetime, TypeAdapter

# What hosts with a time service have. `clock.skewed` is logged from here on.
TOLERATED: Final = timedelta(seconds=5)
# A clock that is behind cannot be told from a heartbeat that was long on its way, up to a worker's time-out of 20 s and the wait for its turn.
_LATENCY: Final = timedelta(seconds=30)
# Of a skew that is corrected. `validation.bodies.FARTHEST` bounds the times themselves.
_LARGEST: Final = timedelta(days=3650).total_seconds()

_TIME: Final[TypeAdapter[datetime]] = TypeAdapter(AwareDatetime)


def corrected(body: str, now: datetime, since: datetime | None, skew_seconds: Callable[[], float]) -> str:
    """Return the checked body of a state with its times by our clock: the task ended no later than now, no earlier than `since`.

    `skew_seconds` returns how far the worker's clock is ahead. It is called only if the task did not just end: most have.
    """
    value = json.loads(body)
    if "end_date" not in value:
        return body
    end = _TIME.validate_python(value["end_date"])
    ahead = timedelta()
    if abs(now - end) > TOLERATED:
        # One shift for all: what was recorded during a cut keeps its distances.
        ahead = timedelta(seconds=max(-_LARGEST, min(skew_seconds(), _LARGEST)))
        if -_LATENCY <= ahead <= TOLERATED:
            ahead = timedelta()
    ended = min(end - ahead, now)
    if since is not None:
        ended = max(ended, min(since, now))
    if ended == end and not ahead:
        return body
    value["end_date"] = ended.isoformat()
    if "reschedule_date" in value:
        value["reschedule_date"] = (_TIME.validate_python(value["reschedule_date"]) - ahead).isoformat()
    return json.dumps(value)
