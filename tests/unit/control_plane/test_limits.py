"""How many may connect, and how often they may ask."""

from __future__ import annotations

import pytest

from airbridge.control_plane.gateway.authentication import Peer
from airbridge.control_plane.gateway.connections import ConnectionLimits, Connections
from airbridge.control_plane.gateway.throttle import RequestRates, Throttle


class Book:
    """Connections, and which of them were ended."""

    def __init__(self, **limits: int) -> None:
        self.connections = Connections(ConnectionLimits(**limits))
        self.ended: list[str] = []

    def admit(self, address: str, name: str):  # type: ignore[no-untyped-def] # the ticket
        return self.connections.admit(address, lambda: self.ended.append(name))


def test_the_oldest_stranger_of_an_address_gives_way_to_the_newest() -> None:
    """Many connections without a certificate cost their own address only, the oldest first."""
    book = Book(per_address=2)
    for name in ("a1", "a2", "a3"):
        book.admit("a", name)
    book.admit("b", "b1")
    assert book.ended == ["a1"]
    assert len(book.connections) == 3


def test_a_worker_is_not_counted_among_the_strangers_of_its_address() -> None:
    """Whoever has shown a certificate cannot be pushed out by those who have not."""
    book = Book(per_address=1, total=3)
    ticket = book.admit("a", "worker")
    ticket.belongs_to("spiffe://w")
    for name in ("s1", "s2", "s3"):
        book.admit("a", name)
    assert book.ended == ["s1", "s2"]


def test_at_the_total_a_stranger_gives_way_or_nobody_is_admitted() -> None:
    """When all there are have shown certificates, a further connection is refused."""
    book = Book(total=2)
    book.admit("a", "first").belongs_to("spiffe://1")
    second = book.admit("b", "second")
    third = book.admit("c", "third")
    assert book.ended == ["second"]
    third.belongs_to("spiffe://3")
    assert book.admit("d", "fourth") is None
    second.give_back()
    assert book.admit("d", "fourth") is None
    third.give_back()
    third.give_back()
    assert book.admit("d", "fourth") is not None


def test_a_worker_has_a_bound_of_its_own() -> None:
    """One worker's connections: the oldest gives way."""
    book = Book(per_worker=2)
    for name in ("1", "2", "3"):
        book.admit("a", name).belongs_to("spiffe://w")
    assert book.ended == ["1"]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


STRANGER = Peer("192.0.2.1:4000")


def test_a_burst_is_served_and_then_the_rate() -> None:
    """Five seconds' worth at once; after that each request waits for its turn, whatever port it comes from."""
    clock = Clock()
    throttle = Throttle(RequestRates(per_address=2.0), clock)
    assert [throttle.wait(STRANGER) for _ in range(10)] == [0.0] * 10
    assert throttle.wait(Peer("192.0.2.1:5000")) == pytest.approx(0.5)
    assert throttle.wait(Peer("192.0.2.2:5000")) == 0.0
    clock.now = 0.5
    assert throttle.wait(STRANGER) == 0.0


def test_heartbeats_do_not_wait_for_what_all_others_do() -> None:
    """The rate in all does not hold for them; their own caller's rate does."""
    throttle = Throttle(RequestRates(total=0.2, per_address=1.0), Clock())
    assert throttle.wait(STRANGER) == 0.0
    assert throttle.wait(STRANGER) == pytest.approx(5.0)
    assert [throttle.wait(STRANGER, vital=True) for _ in range(3)] == [0.0] * 3
    assert throttle.wait(STRANGER, vital=True) > 0


def test_zero_is_no_limit() -> None:
    """A rate of 0 counts nothing."""
    throttle = Throttle(RequestRates(0, 0, 0), Clock())
    assert {throttle.wait(STRANGER) for _ in range(100)} == {0.0}
