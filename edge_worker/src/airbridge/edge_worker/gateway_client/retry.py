"""Retry decisions: one table for every failure of a request to gateway, queue or store."""

from __future__ import annotations

from enum import StrEnum

from airbridge.core.exceptions import QueueError, StoreError
from airbridge.core.protocol import RefusalReason
from airbridge.edge_worker.exceptions import (
    GatewayBusy,
    GatewayRefused,
    GatewayUnreachable,
    MalformedResponse,
)


class RetryDecision(StrEnum):
    """Reaction to a failed request."""

    #: Send the same request again, after a pause.
    RETRY = "retry"
    #: The identity is not accepted (any more): enrol again, then send the same request.
    REENROL = "reenrol"
    #: The response is final: the same request would get the same response.
    GIVE_UP = "give_up"
    #: This worker is revoked: stop.
    REVOKED = "revoked"


_BY_STATUS = {
    401: RetryDecision.REENROL,
    408: RetryDecision.RETRY,
    425: RetryDecision.RETRY,
    # A gateway that is being upgraded or rolled back: it will support this worker's version again, or an operator acts.
    426: RetryDecision.RETRY,
    429: RetryDecision.RETRY,
}
_FAULT_OF_REQUEST = frozenset({400, 413, 422})
_BY_REASON = {
    RefusalReason.REVOKED: RetryDecision.REVOKED,
    RefusalReason.OVERLOADED: RetryDecision.RETRY,
    RefusalReason.INTERNAL: RetryDecision.RETRY,
    RefusalReason.NAME_IN_USE: RetryDecision.RETRY,
}


def judge(error: Exception) -> RetryDecision:
    """Return what to do after `error`, which a request to gateway, queue or store raised."""
    if isinstance(error, GatewayUnreachable | GatewayBusy | MalformedResponse):
        return RetryDecision.RETRY
    if isinstance(error, GatewayRefused):
        return _judge_refusal(error)
    if isinstance(error, QueueError):
        return RetryDecision.RETRY
    if isinstance(error, StoreError):
        return RetryDecision.RETRY if error.transient else RetryDecision.GIVE_UP
    return RetryDecision.GIVE_UP


def is_fault_of_request(error: Exception) -> bool:
    """Return whether the gateway refused the content of the request, as opposed to its sender or its time."""
    return isinstance(error, GatewayRefused) and error.status in _FAULT_OF_REQUEST


def _judge_refusal(error: GatewayRefused) -> RetryDecision:
    by_reason = _BY_REASON.get(error.reason)
    if by_reason is not None:
        return by_reason
    if error.status >= 500:
        return RetryDecision.RETRY
    return _BY_STATUS.get(error.status, RetryDecision.GIVE_UP)


def retry_after(error: Exception) -> float:
    """Return the Retry-After of a busy gateway in seconds; 0 for any other error."""
    seconds = error.retry_after if isinstance(error, GatewayBusy) else None
    return 0.0 if seconds is None else seconds
