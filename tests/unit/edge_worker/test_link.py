"""What the worker takes for a sign of life."""

from __future__ import annotations

import pytest

from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.exceptions import (
    GatewayBusy,
    GatewayError,
    GatewayGarbage,
    GatewayRefused,
    GatewayUnreachable,
)
from airbridge.edge_worker.link import Link
from airbridge.executor.protocol import RefusalReason


class Ticking(SystemClock):
    """A clock that is a second further at each look."""

    def __init__(self) -> None:
        self._seconds = 0.0

    def elapsed(self) -> float:
        self._seconds += 1.0
        return self._seconds


def after(*outcomes: GatewayError | None) -> tuple[bool, bool]:
    """Whether the link is up, and silent, after requests that ended so (None: answered)."""
    link = Link(Ticking())
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
        ([GatewayGarbage("<html>")], False, True),
        ([GatewayBusy("503", 1.0)], True, True),
        ([GatewayBusy("503", 1.0), None], True, False),
        ([GatewayUnreachable("no route"), GatewayBusy("503", 1.0)], False, True),
        ([GatewayUnreachable("no route"), REFUSED], True, False),
        ([GatewayGarbage("<html>"), None], True, False),
    ],
)
def test_what_an_answer_says_of_the_link(outcomes: list[GatewayError | None], up: bool, silent: bool) -> None:
    """An answer in the protocol, a refusal too, is a sign of life; a request for patience is none for who waits."""
    assert after(*outcomes) == (up, silent)


def test_a_request_that_hangs_is_silence_from_its_start() -> None:
    """A black hole is noticed before the time-out."""
    link = Link(Ticking())
    with link.request():
        assert link.silent_for() > 0
    assert link.silent_for() == 0
