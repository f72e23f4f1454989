"""Teams that share a pool, over a real database: whose work is sent next, and what each has used."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import event, select, text, update
from tests.integration.executor.test_outbox import Bench
from tests.support.airflow_home import Metadata
from tests.support.items import new_item

from airbridge.core.regions import Team
from airbridge.executor.ledger import clock, events, items, leases
from airbridge.executor.ledger.models import EventRow, Outcome, UsageRow, WorkItemRow
from airbridge.executor.ledger.sharing import usage
from airbridge.executor.ledger.sharing.fair_shares import FairShares
from airbridge.executor.ledger.sharing.usage import Amount, Subject
from airbridge.executor.settings import Settings

TEAMS = (
    Team(name="large", bundles=("large-dags",)),
    Team(name="small", bundles=("small-dags",), weight=3.0),
    Team(name="capped", bundles=("capped-dags",), quota={"eu-west-1": 2}),
)


@pytest.fixture
def bench(metadata: Metadata, settings: Settings) -> Bench:
    found = Bench(metadata, settings)
    found.loop._shares = FairShares(TEAMS)
    return found


def sent(bench: Bench) -> Counter[str]:
    return Counter(row.team for row in bench.hand.rows("sent"))


def test_teams_take_turns_by_weight(bench: Bench) -> None:
    """Of ten messages of a pool, a team with three times the weight has about three times as many, though its work came last."""
    bench.place(*(new_item(team="large", priority=9) for _ in range(50)))
    bench.place(*(new_item(team="small") for _ in range(50)))
    bench.loop.turn()
    assert sent(bench) == {"large": 3, "small": 7}


def test_what_a_team_has_running_counts(bench: Bench) -> None:
    """A team that has taken the whole pool gets nothing more while another has work, and its rest follows."""
    bench.place(*(new_item(team="large") for _ in range(30)))
    bench.loop.turn()
    bench.hand.claim_only(bench.hand.rows("sent"))
    bench.place(*(new_item(team="small") for _ in range(4)))
    bench.loop.turn()
    assert sent(bench) == {"small": 4, "large": 6}


def test_priority_counts_within_a_team(bench: Bench) -> None:
    """Of a team, the items of the highest priority go first, and then the oldest."""
    low = bench.place(*(new_item(team="small", task_id=f"low-{n}") for n in range(3)))
    high = bench.place(*(new_item(team="small", priority=5, task_id=f"high-{n}") for n in range(3)))
    bench.place(*(new_item(team="large") for _ in range(3)))
    bench.loop.turn()
    queued = [str(item.item_id) for item in bench.queued()]
    mine = [each for each in queued if each in {row.id for row in (*low, *high)}]
    assert set(mine[:3]) == {row.id for row in high}


def test_quota_is_not_exceeded(bench: Bench) -> None:
    """A team with a quota of two slots has no more than two items out, alone in the pool as well; others fill the rest."""
    bench.place(*(new_item(team="capped") for _ in range(5)))
    bench.loop.turn()
    assert sent(bench) == {"capped": 2}
    bench.hand.claim_only(bench.hand.rows("sent"))
    bench.place(*(new_item(team="large") for _ in range(3)))
    bench.loop.turn()
    assert sent(bench) == {"large": 3}


def test_work_under_a_full_quota_does_not_move(bench: Bench) -> None:
    """Work that waits for its team's own work to end does not move to its fallback."""
    fallback = [{"region": "us-east-1", "pool": "default"}]
    placement = {"fallback": fallback, "fallback_after": 60.0, "why": "", "tried": []}
    bench.place(*(new_item(team="capped", placement=placement) for _ in range(5)))
    bench.loop.turn()
    bench.hand.claim_only(bench.hand.rows("sent"))
    with bench.metadata.session() as session:
        bench.change(fallback_at=clock.now(session) - timedelta(seconds=1))
    bench.now += 60
    bench.loop.turn()
    assert {row.region for row in bench.hand.rows("placed")} == {"eu-west-1"}


class MeetingShares(FairShares):
    """Shares of a scheduler that has read the loads, and waits for the other one to have read them."""

    def __init__(self, barrier: threading.Barrier) -> None:
        super().__init__(TEAMS)
        self._barrier = barrier

    def in_turn(self, *given: Any) -> Any:
        with suppress(threading.BrokenBarrierError):
            self._barrier.wait(1)
        return super().in_turn(*given)


def test_two_schedulers_keep_one_quota(metadata: Metadata, settings: Settings) -> None:
    """Two schedulers that send at one time together send no more than the quota."""
    if metadata.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has one writer")
    barrier = threading.Barrier(2)
    benches = [Bench(metadata, settings) for _ in range(2)]
    for bench in benches:
        bench.loop._shares = MeetingShares(barrier)
    benches[0].place(*(new_item(team="capped") for _ in range(60)))
    turns = [threading.Thread(target=bench.loop.turn) for bench in benches]
    for turn in turns:
        turn.start()
    for turn in turns:
        turn.join()
    assert sent(benches[0]) == {"capped": 2}


def test_one_team_costs_no_further_query(bench: Bench, metadata: Metadata) -> None:
    """Without teams in the catalogue, a turn asks for rows once a pool, and for no loads."""
    bench.loop._shares = None
    bench.place(*(new_item(team="large") for _ in range(3)))
    asked: list[str] = []
    event.listen(metadata.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    bench.loop.turn()
    assert not [each for each in asked if "airbridge_work_item.team, airbridge_work_item.state" in each]


# --- Usage ------------------------------------------------------------------------------------------


def all_used(session: Any) -> dict[Subject, Amount]:
    now = clock.now(session)
    return usage.between(session, now - timedelta(days=400), now + timedelta(days=1))


def age(session: Any, row: WorkItemRow, seconds: float) -> None:
    """Move a claim back by so many seconds."""
    row.claimed_at -= timedelta(seconds=seconds)
    session.flush()


def claim(session: Any, row: WorkItemRow) -> None:
    leases.claim(session, row, "w1", 60.0, 600.0, {"start_date": "now"})


def test_usage_adds_every_claim_of_an_item(metadata: Metadata) -> None:
    """What a released claim held and what the last one held are added, times the slots; a running one counts until now."""
    with metadata.session() as session:
        done, running = items.place(session, [new_item(team="small", slots=2), new_item(team="small")], 1)
        session.flush()
        claim(session, done)
        age(session, done, 10)
        leases.release(session, done, "drained")
        claim(session, done)
        age(session, done, 5)
        leases.settle(session, done, Outcome.SUCCESS, "success")
        claim(session, running)
        age(session, running, 7)
        [(subject, amount)] = all_used(session).items()
        session.rollback()
    assert subject == Subject("small", "dag", "eu-west-1", "default")
    assert amount.items == 2
    assert amount.slot_seconds == pytest.approx(2 * 15 + 7, abs=1)


def test_trigger_is_no_item_of_usage(metadata: Metadata) -> None:
    """A deferral counts its task once: its trigger is no item, while it waits, when it has ended and after the retention."""
    with metadata.session() as session:
        [row] = items.place(session, [new_item()], 1)
        session.flush()
        claim(session, row)
        leases.settle(session, row, Outcome.SUCCESS, "deferred")
        trigger = items.place_trigger(session, row, 1)
        session.flush()
        claim(session, trigger)
        assert [used.items for used in all_used(session).values()] == [1]
        leases.settle(session, trigger, Outcome.SUCCESS, "fired")
        assert [used.items for used in all_used(session).values()] == [1]
        session.flush()
        items.purge(session, clock.now(session) + timedelta(days=1))
        assert [used.items for used in all_used(session).values()] == [1]


def succeeded(session: Any) -> WorkItemRow:
    """An item that a worker was granted and that has succeeded."""
    [row] = items.place(session, [new_item()], 1)
    session.flush()
    claim(session, row)
    leases.settle(session, row, Outcome.SUCCESS, "success")
    return row


def test_days_are_in_utc(metadata: Metadata) -> None:
    """The day on which usage is kept, and those that a period means, are UTC's, whatever zone the database or the asker has."""
    tokyo = timezone(timedelta(hours=9))
    with metadata.session() as session:
        if metadata.engine.dialect.name == "postgresql":
            session.execute(text("SET LOCAL TIME ZONE 'Asia/Tokyo'"))
        row = succeeded(session)
        row.settled_at = datetime(2025, 3, 1, 20, 0, tzinfo=UTC)
        session.flush()
        items.purge(session, datetime(2025, 4, 1, tzinfo=UTC))
        [kept] = session.scalars(select(UsageRow)).all()
        assert kept.day == date(2025, 3, 1)
        since = datetime(2025, 3, 2, 5, 0, tzinfo=tokyo)
        assert usage.between(session, since, datetime(2025, 3, 2, 9, 0, tzinfo=tokyo))
        assert not usage.between(session, since + timedelta(days=1), since + timedelta(days=2))
        session.rollback()


@pytest.mark.parametrize(
    "boundary",
    [
        pytest.param(datetime(2025, 3, 1, tzinfo=UTC), id="its-beginning"),
        pytest.param(datetime(2025, 3, 1, 12, 0, tzinfo=UTC), id="its-middle"),
        pytest.param(datetime(2025, 3, 2, tzinfo=UTC), id="its-end"),
    ],
)
def test_adjoining_periods_count_a_kept_day_once(metadata: Metadata, boundary: datetime) -> None:
    """Wherever two periods meet, and so in a month's account and the next one's."""
    with metadata.session() as session:
        row = succeeded(session)
        row.settled_at = datetime(2025, 3, 1, 20, 0, tzinfo=UTC)
        session.flush()
        items.purge(session, datetime(2025, 4, 1, tzinfo=UTC))
        first, last = boundary - timedelta(days=28), boundary + timedelta(days=28)
        periods = [(first, boundary), (boundary, last)]
        counted = [used.items for each in periods for used in usage.between(session, *each).values()]
        assert counted == [1]
        session.rollback()


def test_a_day_that_has_not_ended_counts(metadata: Metadata) -> None:
    """With a retention of hours, today's usage is in a period that reaches to the present."""
    with metadata.session() as session:
        succeeded(session)
        session.flush()
        now = clock.now(session)
        items.purge(session, now + timedelta(minutes=1))
        until = now + timedelta(seconds=1)
        assert [used.items for used in usage.between(session, now - timedelta(hours=1), until).values()] == [
            1
        ]
        session.rollback()


def test_usage_survives_the_retention(metadata: Metadata) -> None:
    """What is deleted is kept by day: the sums stay, also when another purge adds to the same day."""
    with metadata.session() as session:
        rows = items.place(session, [new_item(team="large", dag_id=f"dag-{n % 2}") for n in range(6)], 1)
        session.flush()
        for n, row in enumerate(rows):
            claim(session, row)
            age(session, row, 10 + n)
            leases.settle(session, row, Outcome.LOST if n == 0 else Outcome.SUCCESS, "over")
            session.add(
                EventRow(
                    at=clock.now(session),
                    event="task.ended",
                    actor="w1",
                    item_id=row.id,
                    detail={},
                    source="edge",
                    cpu_seconds=0.5,
                    peak_memory_bytes=1000 * (n + 1),
                    moved_bytes=100,
                )
            )
            for name, source, size in (
                ("bundle.fetched", "edge", 5_000_000_000),
                ("xcom.written", "control", 10),
                ("xcom.read", "control", 7),
                # A worker's own word about an XCom is no account of it.
                ("xcom.read", "edge", 1000),
            ):
                event = events.record(session, name, "w1", row=row)
                event.source, event.moved_bytes = source, size
        session.flush()
        before = all_used(session)
        month = timedelta(days=40)
        for each in rows[:3], rows[3:]:
            ids = [row.id for row in each]
            session.execute(
                update(WorkItemRow)
                .where(WorkItemRow.id.in_(ids))
                .values(settled_at=clock.now(session) - month)
                .execution_options(synchronize_session="fetch")
            )
            assert items.purge(session, clock.now(session) - timedelta(days=30)) == 3
        assert session.scalars(select(WorkItemRow)).all() == []
        assert len(session.scalars(select(UsageRow)).all()) == 2
        after = all_used(session)
        session.rollback()
    assert after.keys() == before.keys()
    for subject, amount in after.items():
        assert amount.slot_seconds == pytest.approx(before[subject].slot_seconds)
        assert (amount.items, amount.cpu_seconds) == (3, 1.5)
        assert (amount.xcom_bytes, amount.log_bytes, amount.code_bytes) == (51, 300, 15_000_000_000)
        assert amount.moved_bytes == before[subject].moved_bytes == 15_000_000_351
        assert amount.peak_memory_bytes == before[subject].peak_memory_bytes
