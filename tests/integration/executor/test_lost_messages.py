"""The outbox when a queue loses messages: it sends again after the queue has reported empty twice in a row."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.integration.executor.test_outbox import Bench, BrokenQueue
from tests.support.airflow_home import Metadata
from tests.support.items import new_item

from airbridge.executor.dispatch.outbox import LOST_CHECK_SECONDS
from airbridge.executor.ledger import clock
from airbridge.executor.settings import Settings

LONG_AGO = timedelta(seconds=45)


@pytest.fixture
def bench(sqlite_metadata: Metadata, settings: Settings) -> Bench:
    return Bench(sqlite_metadata, settings)


def check(bench: Bench, times: int = 1) -> None:
    """Let it be time to look for lost messages, so many times."""
    for _ in range(times):
        bench.now += LOST_CHECK_SECONDS
        bench.loop.turn()


def send(bench: Bench, ago: timedelta = LONG_AGO, pool: str = "default") -> None:
    """Send one item, as if it had been some time ago."""
    bench.place(new_item(pool=pool))
    bench.loop.turn()
    with bench.metadata.session() as session:
        bench.change(sent_at=clock.now(session) - ago)


def sends(bench: Bench) -> list[int]:
    return [row.sends for row in bench.hand.rows()]


def test_messages_in_flight_are_not_lost(bench: Bench) -> None:
    """A worker that has received a message and not yet claimed its item still has it: the queue is not empty."""
    send(bench)
    assert len(bench.queues["default"].receive()) == 1
    check(bench, 5)
    assert sends(bench) == [1]


def test_one_empty_answer_is_not_enough(bench: Bench) -> None:
    """A queue's counts are approximate: it has to be empty twice in a row."""
    send(bench)
    bench.queues["default"] = BrokenQueue()
    check(bench)
    assert sends(bench) == [1]
    bench.queues["default"].send([])
    check(bench)
    bench.loop.turn()
    assert sends(bench) == [2]


def test_message_seen_again_resets_the_count(bench: Bench) -> None:
    """Empty, not empty, empty: not twice in a row."""
    send(bench)
    full, empty = bench.queues["default"], BrokenQueue()
    for queue in (empty, full, empty):
        bench.queues["default"] = queue
        check(bench)
    bench.loop.turn()
    assert sends(bench) == [1]


def test_answered_wait_resets_the_count(bench: Bench) -> None:
    """While nothing waits on the queue an empty one proves nothing, so counting begins anew."""
    send(bench)
    bench.queues["default"] = BrokenQueue()
    check(bench)
    with bench.metadata.session() as session:
        now = clock.now(session)
    bench.change(sent_at=now)
    check(bench)
    bench.change(sent_at=now - LONG_AGO)
    check(bench)
    bench.loop.turn()
    assert sends(bench) == [1]


def test_fresh_messages_are_not_missed(bench: Bench) -> None:
    """A message sent a moment ago may not be counted yet."""
    send(bench, ago=timedelta(seconds=5))
    bench.queues["default"] = BrokenQueue()
    check(bench, 4)
    assert sends(bench) == [1]


def test_every_pool_is_looked_at(bench: Bench) -> None:
    """Nothing waits on the first pool's queue, and the second one's messages are gone."""
    send(bench, pool="gpu")
    bench.queues["gpu"] = BrokenQueue()
    check(bench, 3)
    assert sends(bench) == [2]
    assert len(bench.queued("gpu")) == 1


def test_resent_at_once(bench: Bench) -> None:
    """The loop does not sleep over what it has just put back, and counts anew for the message that follows."""
    send(bench)
    bench.queues["default"] = BrokenQueue()
    check(bench)
    bench.loop.loop._woken.clear()
    check(bench)
    assert bench.loop.loop._woken.is_set()
    bench.loop.turn()
    with bench.metadata.session() as session:
        bench.change(sent_at=clock.now(session) - LONG_AGO)
    bench.queues["default"] = BrokenQueue()
    check(bench)
    bench.loop.turn()
    assert sends(bench) == [2]


def test_checks_keep_their_distance(bench: Bench) -> None:
    """Turns between two checks do not query the queue."""
    send(bench)
    bench.queues["default"] = BrokenQueue()
    check(bench)
    for _ in range(5):
        bench.loop.turn()
    assert sends(bench) == [1]
