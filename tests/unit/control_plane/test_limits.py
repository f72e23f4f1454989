"""Limits on connections and request rates."""

from __future__ import annotations

import pytest

from airbridge.control_plane.gateway.auth.authentication import Peer
from airbridge.control_plane.gateway.net.connections import ConnectionLimits, Connections
from airbridge.control_plane.gateway.net.rate_limits import RateLimiter, RequestRates


class Book:
    """Connections, and which of them were ended."""

    def __init__(self, **limits: int) -> None:
        self.connections = Connections(ConnectionLimits(**limits))
        self.ended: list[str] = []

    def admit(self, address: str, name: str):  # type: ignore[no-untyped-def] # the ticket
        return self.connections.admit(address, lambda: self.ended.append(name))


def test_oldest_anonymous_connection_is_evicted() -> None:
    """Many connections without a certificate cost their own address only, the oldest first."""
    book = Book(per_address=2)
    for name in ("a1", "a2", "a3"):
        book.admit("a", name)
    book.admit("b", "b1")
    assert book.ended == ["a1"]
    assert len(book.connections) == 3


def test_worker_does_not_count_as_anonymous() -> None:
    """A connection that has presented a certificate is not evicted by connections without one."""
    book = Book(per_address=1, total=3)
    ticket = book.admit("a", "worker")
    ticket.assign_worker("spiffe://w")
    for name in ("s1", "s2", "s3"):
        book.admit("a", name)
    assert book.ended == ["s1", "s2"]


def test_total_connection_limit() -> None:
    """When every connection has presented a certificate, a further one is refused."""
    book = Book(total=2)
    book.admit("a", "first").assign_worker("spiffe://1")
    second = book.admit("b", "second")
    third = book.admit("c", "third")
    assert book.ended == ["second"]
    third.assign_worker("spiffe://3")
    assert book.admit("d", "fourth") is None
    second.release()
    assert book.admit("d", "fourth") is None
    third.release()
    third.release()
    assert book.admit("d", "fourth") is not None


def test_connection_limit_per_worker() -> None:
    """One worker's connections: the oldest gives way."""
    book = Book(per_worker=2)
    for name in ("1", "2", "3"):
        book.admit("a", name).assign_worker("spiffe://w")
    assert book.ended == ["1"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


STRANGER = Peer("192.0.2.1:4000")


def test_burst_then_sustained_rate() -> None:
    """Five seconds' worth at once; after that each request waits for its turn, whatever port it comes from."""
    clock = Clock()
    limiter = RateLimiter(RequestRates(per_address=2.0), clock)
    assert [limiter.wait(STRANGER) for _ in range(10)] == [0.0] * 10
    assert limiter.wait(Peer("192.0.2.1:5000")) == pytest.approx(0.5)
    assert limiter.wait(Peer("192.0.2.2:5000")) == 0.0
    clock.now = 0.5
    assert limiter.wait(STRANGER) == 0.0


def test_heartbeats_skip_total_rate_limit() -> None:
    """Heartbeats are exempt from the total rate limit, not from their caller's own."""
    limiter = RateLimiter(RequestRates(total=0.2, per_address=1.0), Clock())
    assert limiter.wait(STRANGER) == 0.0
    assert limiter.wait(STRANGER) == pytest.approx(5.0)
    assert [limiter.wait(STRANGER, vital=True) for _ in range(3)] == [0.0] * 3
    assert limiter.wait(STRANGER, vital=True) > 0


def test_zero_is_no_limit() -> None:
    """A rate of 0 counts nothing."""
    limiter = RateLimiter(RequestRates(0, 0, 0), Clock())
    assert {limiter.wait(STRANGER) for _ in range(100)} == {0.0}
