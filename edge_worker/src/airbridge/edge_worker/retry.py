"""May this be retried, and when? One table answers the first, full jitter the second."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from airbridge.edge_worker.exceptions import (
    GatewayBusy,
    GatewayGarbage,
    GatewayRefused,
    GatewayUnreachable,
)
from airbridge.executor.exceptions import QueueError, StoreError
from airbridge.executor.protocol import RefusalReason


class Verdict(StrEnum):
    """What to do after a failure."""

    RETRY = "retry"
    """The same again, after a pause."""
    REENROL = "reenrol"
    """The identity is not accepted (any more): get a new one, then the same again."""
    GIVE_UP = "give_up"
    """The answer is final: the same again would get the same answer."""
    REVOKED = "revoked"
    """This worker is not wanted: stop."""


_BY_STATUS = {
    401: Verdict.REENROL,
    408: Verdict.RETRY,
    425: Verdict.RETRY,
    426: Verdict.RETRY,
    429: Verdict.RETRY,
}
_FAULT_OF_REQUEST = frozenset({400, 413, 422})
_BY_REASON = {
    RefusalReason.REVOKED: Verdict.REVOKED,
    RefusalReason.OVERLOADED: Verdict.RETRY,
    RefusalReason.INTERNAL: Verdict.RETRY,
}


def judge(error: Exception) -> Verdict:
    """Return what to do after `error`, which a request to gateway, queue or store raised."""
    if isinstance(error, GatewayUnreachable | GatewayBusy | GatewayGarbage):
        return Verdict.RETRY
    if isinstance(error, GatewayRefused):
        return _judge_refusal(error)
    if isinstance(error, QueueError):
        return Verdict.RETRY
    if isinstance(error, StoreError):
        return Verdict.RETRY if error.transient else Verdict.GIVE_UP
    return Verdict.GIVE_UP


def is_fault_of_request(error: Exception) -> bool:
    """Return whether the gateway refused what the request carries, as opposed to who sent it, or anything at all."""
    return isinstance(error, GatewayRefused) and error.status in _FAULT_OF_REQUEST


def _judge_refusal(error: GatewayRefused) -> Verdict:
    by_reason = _BY_REASON.get(error.reason)
    if by_reason is not None:
        return by_reason
    if error.status >= 500:
        return Verdict.RETRY
    return _BY_STATUS.get(error.status, Verdict.GIVE_UP)


@dataclass
class Backoff:
    """Exponential backoff with full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/.

    A pause lies anywhere between zero and the current ceiling, which doubles from `base` to `cap` seconds, so that
    workers that lost the gateway together do not come back together.
    """

    rng: random.Random
    base: float
    cap: float
    attempts: int = 0

    def pause(self, error: Exception | None = None) -> float:
        """Return how many seconds to wait now; at least what the gateway's Retry-After asked for, jitter on top."""
        ceiling = min(self.cap, self.base * 2 ** min(self.attempts, 32))
        self.attempts += 1
        pause = self.rng.uniform(0.0, ceiling)
        asked = error.retry_after if isinstance(error, GatewayBusy) else None
        return pause if asked is None else asked + pause

    def reset(self) -> None:
        """Begin again at `base`: something worked."""
        self.attempts = 0
