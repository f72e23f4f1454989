"""Retry decisions."""

from __future__ import annotations

import pytest

from airbridge.core.exceptions import QueueError, StoreError
from airbridge.core.protocol import RefusalReason
from airbridge.edge_worker.exceptions import (
    GatewayBusy,
    GatewayRefused,
    GatewayUnreachable,
    IdentityError,
    MalformedResponse,
)
from airbridge.edge_worker.gateway_client.retry import RetryDecision, is_fault_of_request, judge, retry_after

TABLE = [
    (GatewayUnreachable("gone"), RetryDecision.RETRY),
    (GatewayBusy("busy", 3.0), RetryDecision.RETRY),
    (MalformedResponse("<html>"), RetryDecision.RETRY),
    (GatewayRefused(401, RefusalReason.FORBIDDEN, "token"), RetryDecision.REENROL),
    (GatewayRefused(403, RefusalReason.FORBIDDEN, "scope"), RetryDecision.GIVE_UP),
    (GatewayRefused(403, RefusalReason.REVOKED, "revoked"), RetryDecision.REVOKED),
    (GatewayRefused(401, RefusalReason.REVOKED, "revoked"), RetryDecision.REVOKED),
    (GatewayRefused(400, RefusalReason.MALFORMED, "what?"), RetryDecision.GIVE_UP),
    (GatewayRefused(413, RefusalReason.MALFORMED, "large"), RetryDecision.GIVE_UP),
    (GatewayRefused(422, RefusalReason.MALFORMED, "what?"), RetryDecision.GIVE_UP),
    (GatewayRefused(426, RefusalReason.PARITY, "version"), RetryDecision.RETRY),
    (GatewayRefused(500, RefusalReason.INTERNAL, "oops"), RetryDecision.RETRY),
    (GatewayRefused(500, RefusalReason.UNKNOWN, "oops"), RetryDecision.RETRY),
    (GatewayRefused(409, RefusalReason.OVERLOADED, "later"), RetryDecision.RETRY),
    (GatewayRefused(409, RefusalReason.NAME_IN_USE, "in use"), RetryDecision.RETRY),
    (QueueError("away"), RetryDecision.RETRY),
    (StoreError("away", transient=True), RetryDecision.RETRY),
    (StoreError("denied", transient=False), RetryDecision.GIVE_UP),
    (IdentityError("no token"), RetryDecision.GIVE_UP),
    (RuntimeError("a bug"), RetryDecision.GIVE_UP),
]


@pytest.mark.parametrize(("error", "verdict"), TABLE, ids=lambda value: str(value)[:40])
def test_decision_of_each_failure(error: Exception, verdict: RetryDecision) -> None:
    """Every kind of failure has one answer."""
    assert judge(error) is verdict


@pytest.mark.parametrize("status", [400, 413, 422])
def test_fault_of_request_by_status(status: int) -> None:
    """A record is given up for what it is, never for who sent it or when."""
    assert is_fault_of_request(GatewayRefused(status, RefusalReason.MALFORMED, ""))
    assert not is_fault_of_request(GatewayRefused(403, RefusalReason.FORBIDDEN, ""))
    assert not is_fault_of_request(GatewayRefused(404, RefusalReason.UNKNOWN, ""))
    assert not is_fault_of_request(MalformedResponse("400"))


def test_retry_after_of_busy_gateway() -> None:
    """A busy gateway's Retry-After counts; any other error has none."""
    assert retry_after(GatewayBusy("busy", 30.0)) == 30.0
    assert retry_after(GatewayBusy("busy")) == 0.0
    assert retry_after(GatewayUnreachable("gone")) == 0.0
