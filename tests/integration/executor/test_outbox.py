"""The outbox over a real database and in-memory queues."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from tests.integration.executor.conftest import Queues
from tests.integration.executor.test_ledger import beat, enrol
from tests.support.airflow_home import Metadata
from tests.support.items import new_item
from tests.support.scheduler import Hand
from tests.unit.executor.catalogues import catalogue

from airbridge.core.aws.queue import Depth, MemoryQueue, Outgoing
from airbridge.core.exceptions import QueueError
from airbridge.core.protocol import WorkItem
from airbridge.core.regions import Region
from airbridge.core.signing import Signer, Verifier
from airbridge.executor import _airflow
from airbridge.executor.dispatch.outbox import Outbox, RegionOutbox
from airbridge.executor.ledger import clock, items, leases
from airbridge.executor.ledger.items import NewItem
from airbridge.executor.ledger.models import WorkItemRow
from airbridge.executor.settings import Settings

SIGNER = Signer.generate()
VERIFIER = Verifier([SIGNER.verify_key])
US, EUROPE = catalogue().regions


class BrokenQueue(MemoryQueue):
    """A queue that can be cut off, and that refuses messages named in `refuses`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_down = False
        self.refuses: set[str] = set()
        self.batches: list[int] = []

    def send(self, messages: Sequence[Outgoing]) -> dict[str, str]:
        if self.is_down:
            raise QueueError("send_message_batch: connection refused")
        self.batches.append(len(messages))
        super().send([each for each in messages if each.id not in self.refuses])
        return {each.id: "InternalError: try again" for each in messages if each.id in self.refuses}

    def depth(self) -> Depth:
        if self.is_down:
            raise QueueError("get_queue_attributes: connection refused")
        return super().depth()


class Bench:
    """One region's loop, turned by hand."""

    def __init__(self, metadata: Metadata, settings: Settings, region: Region = EUROPE) -> None:
        self.hand = Hand(metadata)
        self.metadata = metadata
        self.queues: dict[str, BrokenQueue] = {pool.name: BrokenQueue() for pool in region.pools}
        self.now = 0.0
        self.woken: list[str] = []
        self.loop = RegionOutbox(
            region,
            settings=settings,
            signer=SIGNER,
            new_session=_airflow.new_session,
            queue_of=lambda _, pool: self.queues[pool.name],
            wake_region=self.woken.append,
            random=lambda: 0.5,
            monotonic=lambda: self.now,
        )

    def place(self, *new: NewItem) -> list[WorkItemRow]:
        with self.metadata.session() as session:
            rows = items.place(session, new, 1)
            session.commit()
        return rows

    def queued(self, pool: str = "default") -> list[WorkItem]:
        found: list[WorkItem] = []
        while messages := self.queues[pool].receive():
            found.extend(VERIFIER.open(message.body) for message in messages)
        return found

    def change(self, **values: Any) -> None:
        from sqlalchemy import update

        with self.metadata.session() as session:
            session.execute(update(WorkItemRow).values(**values))
            session.commit()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, outbox_floor=20)


@pytest.fixture
def bench(metadata: Metadata, settings: Settings) -> Bench:
    return Bench(metadata, settings)


def test_a_placed_item_is_sent_signed(bench: Bench) -> None:
    """The message names task instance, epoch, region and pool; its signature verifies, and it expires."""
    [row] = bench.place(new_item(slots=3, trace={"traceparent": "x"}))
    bench.loop.turn()
    [item] = bench.queued()
    assert (str(item.item_id), str(item.ti_id), item.epoch) == (row.id, row.ti_id, 0)
    assert (item.region, item.pool, item.slots, item.dag_rel_path) == ("eu-west-1", "default", 3, "dag.py")
    assert item.bundle.version == row.workload["bundle"]["version"]
    # The default of `message_ttl`.
    assert item.expires_at - item.issued_at == timedelta(seconds=900)
    [sent] = bench.hand.rows()
    assert (sent.state, sent.sends) == ("sent", 1)
    assert abs(sent.expires_at - item.expires_at) < timedelta(seconds=5)


def test_nothing_is_sent_twice(bench: Bench) -> None:
    """A sent row rests until its message expires."""
    bench.place(new_item())
    for _ in range(3):
        bench.loop.turn()
    assert len(bench.queued()) == 1


def test_retry_waits_for_held_attempt(bench: Bench) -> None:
    """A retry is not sent while a worker holds the attempt before it; the items beside it are."""
    bench.place(new_item())
    bench.loop.turn()
    bench.hand.claim_only(bench.hand.rows())
    [first] = bench.queued()
    [retry, other] = bench.place(new_item(try_number=2), new_item(try_number=2, run_id="other"))
    bench.loop.turn()
    assert [str(item.item_id) for item in bench.queued()] == [other.id]
    states = {row.id: row.state for row in bench.hand.rows()}
    assert states == {str(first.item_id): "claimed", retry.id: "placed", other.id: "sent"}


def test_items_go_in_batches(bench: Bench) -> None:
    """Items are sent in batches of ten."""
    bench.place(*(new_item() for _ in range(15)))
    bench.loop.turn()
    assert bench.queues["default"].batches == [10, 5]


def test_highest_priority_is_sent_first(bench: Bench) -> None:
    """Priority decides the order on the queue."""
    rows = bench.place(*(new_item(priority=number) for number in (3, 9, 1)))
    bench.loop.turn()
    priority = {row.id: row.priority for row in rows}
    assert [priority[str(item.item_id)] for item in bench.queued()] == [9, 3, 1]


def test_each_pool_has_its_queue(bench: Bench) -> None:
    """A pool's items go to the pool's own queue, and another region's stay."""
    bench.place(new_item(), new_item(pool="gpu"), new_item(region="us-east-1"))
    bench.loop.turn()
    assert [len(bench.queued(pool)) for pool in ("default", "gpu")] == [1, 1]
    assert sorted(row.state for row in bench.hand.rows()) == ["placed", "sent", "sent"]


def test_a_backlog_waits_in_the_ledger(metadata: Metadata, settings: Settings) -> None:
    """No more goes out than the workers will soon take, and what is urgent overtakes what waits."""
    bench = Bench(metadata, replace(settings, outbox_floor=1, outbox_per_slot=1.0))
    with metadata.session() as session:
        enrol(session, "w1")
        beat(session, "w1", slots_total=2)
        session.commit()
    bench.place(*(new_item(priority=1) for _ in range(6)))
    pause = bench.loop.turn()
    assert len(bench.queued()) == 2
    assert pause.seconds == settings.outbox_blocked_interval

    bench.place(new_item(priority=50))
    bench.hand.claim_only(bench.hand.rows("sent")[:1])
    bench.loop.turn()
    [urgent] = [row for row in bench.hand.rows("sent") if row.priority == 50]
    assert urgent.sends == 1


def test_place_is_full_while_work_waits(bench: Bench, metadata: Metadata) -> None:
    """Regions whose workers have more than they can take are reported to the scheduler; not those without
    workers, or with a failed send.
    """
    bench.place(*(new_item() for _ in range(25)), new_item(pool="gpu"))
    bench.loop.turn()
    assert bench.loop.full == frozenset()
    with metadata.session() as session:
        enrol(session, "w1")
        beat(session, "w1", slots_total=2)
        session.commit()
    bench.loop.turn()
    assert bench.loop.full == {("eu-west-1", "default")}
    bench.queues["default"].is_down = True
    bench.hand.claim_only(bench.hand.rows("sent"))
    bench.loop.turn()
    assert bench.loop.full == frozenset()


@contextmanager
def counted(metadata: Metadata) -> Iterator[list[str]]:
    """The statements of the block, without what takes the write lock of SQLite."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_others: object) -> None:
        if "SET epoch = epoch" not in statement:
            statements.append(statement)

    event.listen(metadata.engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(metadata.engine, "before_cursor_execute", note)


def test_turn_has_constant_query_count(bench: Bench, metadata: Metadata) -> None:
    """A turn costs eight statements, however many items wait: the time, two counts and the selection; then a reservation, the time,
    a confirmation and the events."""
    bench.loop.turn()  # tidies and looks for lost messages: the next turns do not
    costs = []
    for waiting in (20, 200):
        bench.place(*(new_item() for _ in range(waiting)))
        with counted(metadata) as statements:
            bench.loop.turn()
        costs.append(len(statements))
        assert len(bench.hand.rows("sent")) == 20
        bench.hand.claim_only(bench.hand.rows("sent"))
    assert costs[0] == costs[1]
    if metadata.engine.dialect.name == "postgresql":  # SQLite adds a row at a time
        assert costs[0] == 8


def test_turn_without_capacity_is_cheap(bench: Bench, metadata: Metadata) -> None:
    """A turn over full queues costs three statements, the time and two counts: nothing is reserved, confirmed or put back."""
    bench.place(*(new_item() for _ in range(25)))
    bench.loop.turn()
    bench.loop.turn()
    with counted(metadata) as statements:
        bench.loop.turn()
    assert [each.split(maxsplit=1)[0] for each in statements] == ["SELECT"] * 3


def test_unreachable_region_keeps_items(bench: Bench) -> None:
    """Nothing is lost while a queue is unreachable; it is left alone for longer each time, and takes its items when it is back."""
    bench.queues["default"].is_down = True
    bench.place(*(new_item() for _ in range(3)))
    pauses = []
    for _ in range(3):
        pauses.append(bench.loop.turn().seconds)
        assert bench.loop.turn().seconds == pauses[-1]
        bench.now += pauses[-1]
    # Base 0.01, doubled for each failure, times the jitter's 0.5; a wake before its time changes nothing.
    assert [round(seconds, 4) for seconds in pauses] == [0.005, 0.01, 0.02]
    assert {row.state for row in bench.hand.rows()} == {"placed"}
    assert {row.detail for row in bench.hand.rows()} == {
        "did not take it: send_message_batch: connection refused"
    }

    bench.queues["default"].is_down = False
    assert bench.loop.turn().least_seconds == 0
    assert len(bench.queued()) == 3


def test_unreachable_queue_stops_no_other(bench: Bench) -> None:
    """Each pool of a region is sent to on its own: one unreachable queue delays no other, now or later."""
    bench.queues["default"].is_down = True
    bench.place(new_item(priority=9))
    for _ in range(12):
        bench.now += bench.loop.turn().seconds
    bench.place(new_item(pool="gpu"))
    pause = bench.loop.turn()
    assert len(bench.queued("gpu")) == 1
    assert pause.least_seconds == 0


def test_failed_queue_without_work_costs_no_turns(bench: Bench, settings: Settings) -> None:
    """Once nothing waits for a queue that has failed, the loop pauses as it does otherwise."""
    bench.queues["default"].is_down = True
    bench.place(new_item())
    bench.loop.turn()
    bench.change(state="settled")
    for _ in range(3):
        bench.now += 60
        pause = bench.loop.turn()
    assert pause.seconds == settings.outbox_interval


def test_lost_messages_of_other_pools_are_found(bench: Bench, metadata: Metadata) -> None:
    """While one pool's queue answers nothing, the emptied queue of another is still noticed."""
    bench.place(new_item(), new_item(pool="gpu"))
    bench.loop.turn()
    bench.queued("gpu")
    bench.queues["default"].is_down = True
    with metadata.session() as session:
        bench.change(sent_at=clock.now(session) - timedelta(minutes=10))
    for _ in range(3):
        bench.now += 20
        bench.loop.turn()
    bench.queues["gpu"] = BrokenQueue()
    for _ in range(4):
        bench.now += 20
        bench.loop.turn()
    assert len(bench.queued("gpu")) == 1


def test_a_refused_message_is_sent_again(bench: Bench) -> None:
    """A batch may go through in part: only what was refused is sent again."""
    kept, refused = bench.place(new_item(), new_item())
    bench.queues["default"].refuses = {refused.id}
    bench.loop.turn()
    assert {row.id: row.state for row in bench.hand.rows()} == {kept.id: "sent", refused.id: "placed"}
    bench.queues["default"].refuses = set()
    bench.now += 1
    bench.loop.turn()
    assert sorted(str(item.item_id) for item in bench.queued()) == sorted([kept.id, refused.id])


class GivenBackQueue(BrokenQueue):
    """A queue whose messages are claimed, and given back for later, before the send returns."""

    def __init__(self, metadata: Metadata, later: timedelta) -> None:
        super().__init__()
        self._metadata, self._later = metadata, later

    def send(self, messages: Sequence[Outgoing]) -> dict[str, str]:
        refused = super().send(messages)
        with self._metadata.session() as session:
            for row in leases.lock(session, [each.id for each in messages]).values():
                leases.to_placed(row, clock.now(session) + self._later)
            session.commit()
        return refused


@pytest.mark.parametrize("refuses", [False, True])
def test_given_back_while_being_sent(bench: Bench, metadata: Metadata, refuses: bool) -> None:
    """A row that a claim gave back before the send was confirmed waits as the claim has it: its message is used up."""
    queue = bench.queues["default"] = GivenBackQueue(metadata, timedelta(minutes=5))
    [row] = bench.place(new_item())
    if refuses:
        queue.refuses = {row.id}
    bench.loop.turn()
    [waits] = bench.hand.rows()
    assert (waits.state, waits.sent_at) == ("placed", None)
    assert waits.not_before > waits.placed_at + timedelta(minutes=4)


def test_moved_while_being_sent(bench: Bench, metadata: Metadata) -> None:
    """A row that was given back and sent again meanwhile belongs to that sending."""
    [row] = bench.place(new_item())
    with metadata.session() as session:
        first = clock.now(session) + timedelta(seconds=60)
        items.reserve(session, [row.id], first)
        leases.to_placed(leases.lock(session, [row.id])[row.id], clock.now(session))
        session.flush()
        second = first + timedelta(seconds=1)
        items.reserve(session, [row.id], second)
        items.mark_sent(
            session, [row.id], first + timedelta(days=1), at=clock.now(session), reserved_until=first
        )
        items.postpone(session, [row.id], first, "refused", reserved_until=first)
        session.commit()
    [sent] = bench.hand.rows()
    assert (sent.state, sent.sent_at, sent.expires_at) == ("sent", None, second)


def test_unconfirmed_send_is_repeated(bench: Bench, metadata: Metadata) -> None:
    """A scheduler killed between reserving and confirming leaves a row that is sent again."""
    [row] = bench.place(new_item())
    with metadata.session() as session:
        items.reserve(session, [row.id], clock.now(session) - timedelta(seconds=1))
        session.commit()
    bench.loop.turn()
    assert len(bench.queued()) == 1


def test_an_expired_item_is_sent_anew(bench: Bench, metadata: Metadata) -> None:
    """A message that was not claimed in time is replaced by a fresh one."""
    bench.place(new_item())
    bench.loop.turn()
    [old] = bench.queued()
    with metadata.session() as session:
        past = clock.now(session) - timedelta(seconds=1)
    bench.change(expires_at=past)
    # Expired messages are looked for only every so often.
    bench.now += 60
    bench.loop.turn()
    [new] = bench.queued()
    assert new.item_id == old.item_id
    assert new.expires_at > old.expires_at


def test_lost_messages_are_sent_again(bench: Bench, metadata: Metadata) -> None:
    """A queue that is reported empty repeatedly while items wait on it has lost them."""
    bench.place(new_item())
    bench.loop.turn()
    assert len(bench.queued()) == 1
    bench.queues["default"] = BrokenQueue()
    with metadata.session() as session:
        long_ago = clock.now(session) - timedelta(seconds=45)
    bench.change(sent_at=long_ago)
    for _ in range(4):
        bench.now += 60
        bench.loop.turn()
    assert len(bench.queued()) == 1
    assert bench.hand.rows()[0].sends == 2


def test_existing_messages_are_not_repeated(bench: Bench, metadata: Metadata) -> None:
    """A region without workers keeps its messages; they are not doubled while they wait."""
    bench.place(new_item())
    bench.loop.turn()
    with metadata.session() as session:
        long_ago = clock.now(session) - timedelta(seconds=45)
    bench.change(sent_at=long_ago)
    for _ in range(5):
        bench.now += 60
        bench.loop.turn()
    assert len(bench.queued()) == 1


def test_unclaimed_work_moves_to_fallback(bench: Bench, metadata: Metadata) -> None:
    """After fallback_after an unclaimed item goes to the next region, whose loop is woken; the old message is stale."""
    placement = {
        "fallback": [{"region": "us-east-1", "pool": "default"}],
        "fallback_after": 60.0,
        "why": "",
        "tried": [],
    }
    bench.place(new_item(placement=placement))
    bench.loop.turn()
    [stale] = bench.queued()
    with metadata.session() as session:
        past = clock.now(session) - timedelta(seconds=1)
    bench.change(fallback_at=past)
    bench.now += 60
    bench.loop.turn()
    [row] = bench.hand.rows()
    assert (row.region, row.state, row.epoch) == ("us-east-1", "placed", 1)
    assert stale.epoch == 0
    assert bench.woken == ["us-east-1"]


def test_oversized_item_fails_alone(bench: Bench) -> None:
    """A row that cannot be put on a queue is failed with the reason and holds nothing up."""
    endless = new_item(priority=9)
    # an envelope has at most 16,384 bytes
    endless.workload["dag_rel_path"] = "x" * 20_000
    bad, good = bench.place(endless, new_item())
    bench.loop.turn()
    assert [str(item.item_id) for item in bench.queued()] == [good.id]
    [failed] = bench.hand.rows("settled")
    assert failed.id == bad.id
    assert failed.detail.startswith("it cannot be put on a queue: its message is")


def test_database_error_keeps_loop_running(bench: Bench, metadata: Metadata) -> None:
    """The loop goes on after a turn that failed."""
    from sqlalchemy import text

    with metadata.engine.begin() as connection:
        connection.execute(text("ALTER TABLE airbridge_work_item RENAME TO away"))
    assert bench.loop.turn().least_seconds > 0
    with metadata.engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO airbridge_work_item"))
    bench.place(new_item())
    assert bench.loop.turn().least_seconds == 0
    assert len(bench.queued()) == 1


def test_running_loops_wake_and_stop(metadata: Metadata, settings: Settings, queues: Queues) -> None:
    """A woken loop sends without waiting for its interval; stopping ends every thread."""
    outbox = Outbox(
        catalogue().regions,
        settings=replace(settings, outbox_interval=60.0),
        signer=SIGNER,
        new_session=_airflow.new_session,
        queue_of=queues.of,
        random=lambda: 0.5,
    )
    outbox.start()
    try:
        time.sleep(0.5)
        with metadata.session() as session:
            items.place(session, [new_item()], 1)
            session.commit()
        outbox.wake("eu-west-1")
        outbox.wake("no-such-region")
        assert len(queues["eu-west-1", "default"].receive(wait_seconds=15)) == 1
    finally:
        outbox.stop()
    assert not [each for each in threading.enumerate() if each.name.startswith("airbridge-outbox")]


def test_two_outboxes_send_everything_once(
    postgres_metadata: Metadata, settings: Settings, queues: Queues
) -> None:
    """Two schedulers' outboxes share the rows between them."""

    def outbox() -> Outbox:
        return Outbox(
            [EUROPE],
            settings=replace(settings, outbox_floor=500),
            signer=SIGNER,
            new_session=_airflow.new_session,
            queue_of=queues.of,
            random=lambda: 0.5,
        )

    with postgres_metadata.session() as session:
        items.place(session, [new_item() for _ in range(200)], 1)
        session.commit()
    both = [outbox(), outbox()]
    for each in both:
        each.start()
    hand = Hand(postgres_metadata)
    deadline = time.monotonic() + 30
    while hand.rows("placed") and time.monotonic() < deadline:
        time.sleep(0.1)
    for each in both:
        each.stop()
    assert queues["eu-west-1", "default"].depth() == Depth(visible=200, in_flight=0)
    assert {row.sends for row in hand.rows()} == {1}


class SilentQueue(BrokenQueue):
    """A queue that takes a call and answers once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.calls = 0

    def send(self, messages: Sequence[Outgoing]) -> dict[str, str]:
        self.calls += 1
        assert self.answers.wait(30)
        return super().send(messages)


def test_silent_queue_delays_no_other_pool(bench: Bench) -> None:
    """While a queue does not answer, the region's other pools are sent to, and its own items are neither sent twice nor lost."""
    silent = bench.queues["gpu"] = SilentQueue()
    bench.place(*(new_item(pool="gpu") for _ in range(3)), new_item())
    bench.loop.turn()
    assert len(bench.queued()) == 1
    began = time.monotonic()
    for _ in range(5):
        bench.place(new_item())
        bench.loop.turn()
        assert len(bench.queued()) == 1
    assert time.monotonic() - began < 2
    assert silent.calls == 1
    silent.answers.set()
    for _ in range(50):
        bench.loop.turn()
        if not bench.loop._calls.is_busy("gpu"):
            break
        time.sleep(0.02)
    assert len(bench.queued("gpu")) == 3
    assert {row.state for row in bench.hand.rows()} == {"sent"}


def test_slow_queue_is_waited_for_once(bench: Bench) -> None:
    """A queue that takes a second for each call delays the other pools' first turn alone."""
    silent = bench.queues["gpu"] = SilentQueue()
    waits = []
    for _ in range(3):
        silent.answers.clear()
        bench.place(new_item(pool="gpu"), new_item())
        began = time.monotonic()
        bench.loop.turn()
        waits.append(time.monotonic() - began)
        time.sleep(max(0.0, 0.7 - waits[-1]))
        silent.answers.set()
        while not bench.loop._calls._running["gpu"].done.is_set():
            time.sleep(0.01)
        bench.loop._take_ended()
    assert waits[0] > 0.4
    assert max(waits[1:]) < 0.4


def test_dead_queue_backs_off_alone(bench: Bench) -> None:
    """A queue that fails after a silence has a backoff of its own; its items keep the reason and go out once it works."""
    silent = bench.queues["gpu"] = SilentQueue()
    bench.place(new_item(pool="gpu"), new_item())
    bench.loop.turn()
    silent.is_down = True
    silent.answers.set()
    bench.loop._calls._running["gpu"].done.wait(5)
    bench.place(new_item())
    bench.loop.turn()
    assert len(bench.queued()) == 2
    [row] = [row for row in bench.hand.rows() if row.pool == "gpu"]
    assert (row.state, row.detail) == ("placed", "did not take it: send_message_batch: connection refused")
    bench.loop.turn()
    assert silent.calls == 1
    silent.is_down = False
    bench.now += 60
    bench.loop.turn()
    assert len(bench.queued("gpu")) == 1
