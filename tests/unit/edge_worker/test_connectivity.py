"""Contact with the gateway, by the responses to requests."""

from __future__ import annotations

import pytest

from airbridge.core.protocol import RefusalReason
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.exceptions import (
    GatewayBusy,
    GatewayError,
    GatewayRefused,
    GatewayUnreachable,
    MalformedResponse,
)
from airbridge.edge_worker.gateway_client.connectivity import Connectivity


class Ticking(SystemClock):
    """A clock that is a second further at each look."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def elapsed(self) -> float:
        self._seconds += 1.0
        return self._seconds


def after(*outcomes: GatewayError | None) -> tuple[bool, bool]:
    """Return (up, silent) after requests with these results (None: answered)."""
    link = Connectivity(Ticking())
    for outcome in outcomes:
        try:
            with link.request():
                if outcome is not None:
                    raise outcome
        except GatewayError:
            pass
    return link.up, link.silent_for() > 0


REFUSED = GatewayRefused(403, RefusalReason.FORBIDDEN, "no")


@pytest.mark.parametrize(
    ("outcomes", "up", "silent"),
    [
        ([None], True, False),
        ([REFUSED], True, False),
        ([GatewayUnreachable("no route")], False, True),
        ([MalformedResponse("<html>")], False, True),
        ([GatewayBusy("503", 1.0)], True, True),
        ([GatewayBusy("503", 1.0), None], True, False),
        ([GatewayUnreachable("no route"), GatewayBusy("503", 1.0)], False, True),
        ([GatewayUnreachable("no route"), REFUSED], True, False),
        ([MalformedResponse("<html>"), None], True, False),
    ],
)
def test_connectivity_by_response(outcomes: list[GatewayError | None], up: bool, silent: bool) -> None:
    """A response in the protocol, a refusal too, is contact; a busy gateway is up, but silent for a waiting caller."""
    assert after(*outcomes) == (up, silent)


def test_hanging_request_counts_as_silence() -> None:
    """A black hole is noticed before the time-out: silence counts from the start of the request."""
    link = Connectivity(Ticking())
    with link.request():
        assert link.silent_for() > 0
    assert link.silent_for() == 0


def test_upload_that_goes_on_is_no_silence() -> None:
    """A request counts as silent from the last part of it that was sent."""
    clock = Ticking()
    link = Connectivity(clock)
    with link.request() as progressed:
        for _ in range(100):
            clock.elapsed()
        progressed()
        assert link.silent_for() == 1
