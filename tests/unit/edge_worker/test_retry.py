"""May this be retried? The table, and the jitter."""

from __future__ import annotations

import random

import pytest

from airbridge.edge_worker.exceptions import (
    GatewayBusy,
    GatewayGarbage,
    GatewayRefused,
    GatewayUnreachable,
    IdentityError,
)
from airbridge.edge_worker.retry import Backoff, Verdict, is_fault_of_request, judge
from airbridge.executor.exceptions import QueueError, StoreError
from airbridge.executor.protocol import RefusalReason

TABLE = [
    (GatewayUnreachable("gone"), Verdict.RETRY),
    (GatewayBusy("busy", 3.0), Verdict.RETRY),
    (GatewayGarbage("<html>"), Verdict.RETRY),
    (GatewayRefused(401, RefusalReason.FORBIDDEN, "token"), Verdict.REENROL),
    (GatewayRefused(403, RefusalReason.FORBIDDEN, "scope"), Verdict.GIVE_UP),
    (GatewayRefused(403, RefusalReason.REVOKED, "revoked"), Verdict.REVOKED),
    (GatewayRefused(401, RefusalReason.REVOKED, "revoked"), Verdict.REVOKED),
    (GatewayRefused(400, RefusalReason.MALFORMED, "what?"), Verdict.GIVE_UP),
    (GatewayRefused(413, RefusalReason.MALFORMED, "large"), Verdict.GIVE_UP),
    (GatewayRefused(422, RefusalReason.MALFORMED, "what?"), Verdict.GIVE_UP),
    (GatewayRefused(426, RefusalReason.PARITY, "version"), Verdict.RETRY),
    (GatewayRefused(500, RefusalReason.INTERNAL, "oops"), Verdict.RETRY),
    (GatewayRefused(500, RefusalReason.UNKNOWN, "oops"), Verdict.RETRY),
    (GatewayRefused(409, RefusalReason.OVERLOADED, "later"), Verdict.RETRY),
    (QueueError("away"), Verdict.RETRY),
    (StoreError("away", transient=True), Verdict.RETRY),
    (StoreError("denied", transient=False), Verdict.GIVE_UP),
    (IdentityError("no token"), Verdict.GIVE_UP),
    (RuntimeError("a bug"), Verdict.GIVE_UP),
]


@pytest.mark.parametrize(("error", "verdict"), TABLE, ids=lambda value: str(value)[:40])
def test_the_table(error: Exception, verdict: Verdict) -> None:
    """Every kind of failure has one answer."""
    assert judge(error) is verdict


@pytest.mark.parametrize("status", [400, 413, 422])
def test_only_a_refused_body_is_the_records_fault(status: int) -> None:
    """A record is given up for what it is, never for who sent it or when."""
    assert is_fault_of_request(GatewayRefused(status, RefusalReason.MALFORMED, ""))
    assert not is_fault_of_request(GatewayRefused(403, RefusalReason.FORBIDDEN, ""))
    assert not is_fault_of_request(GatewayRefused(404, RefusalReason.UNKNOWN, ""))
    assert not is_fault_of_request(GatewayGarbage("400"))


def test_pauses_are_spread_over_a_growing_range() -> None:
    """Full jitter: anything from zero to the ceiling, which doubles up to the cap."""
    pauses = [
        [Backoff(random.Random(n), 1.0, 8.0, attempts).pause() for n in range(500)] for attempts in range(6)
    ]
    for attempts, found in enumerate(pauses):
        ceiling = min(8.0, 2.0**attempts)
        assert 0 <= min(found) < ceiling * 0.1
        assert ceiling * 0.9 < max(found) <= ceiling


def test_what_the_gateway_asks_for_is_waited_at_least() -> None:
    """Retry-After is a floor, with jitter on top, so that all who were told the same do not come back together."""
    pauses = {Backoff(random.Random(n), 1.0, 8.0).pause(GatewayBusy("busy", 30.0)) for n in range(20)}
    assert min(pauses) >= 30.0
    assert len(pauses) == 20


def test_success_begins_again_at_the_base() -> None:
    """After a reset the first pause is short again."""
    backoff = Backoff(random.Random(1), 1.0, 1000.0)
    for _ in range(50):
        backoff.pause()
    backoff.reset()
    assert backoff.pause() <= 1.0
