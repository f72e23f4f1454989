"""Limits over a real database: what the outbox sends, and claims of many connections at one time."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from tests.integration.executor.test_outbox import Bench
from tests.support.airflow_home import Metadata, pointed_at
from tests.support.items import new_item
from tests.support.postgres import Postgres
from tests.unit.executor.catalogues import catalogue

from airbridge.core.regions import Limit, Team
from airbridge.executor.ledger import clock, items, leases
from airbridge.executor.ledger.models import ItemState, LimitStartRow, Outcome, WorkItemRow
from airbridge.executor.ledger.sharing.fair_shares import FairShares
from airbridge.executor.ledger.sharing.limits import Limits
from airbridge.executor.settings import Settings

US, EUROPE = catalogue().regions
ERP = Limit(name="erp", max_running=3)


@pytest.fixture
def bench(metadata: Metadata, settings: Settings) -> Bench:
    return limited(Bench(metadata, settings), ERP)


def limited(bench: Bench, *limits: Limit) -> Bench:
    bench.loop._limits = Limits(limits)
    return bench


def sent(bench: Bench) -> Counter[str | None]:
    return Counter(row.limits for row in bench.hand.rows("sent"))


def test_no_more_are_sent_than_may_start(bench: Bench) -> None:
    """Of a limit's tasks as many are sent as it lets run; tasks of lower priority behind them are not held back."""
    bench.place(*(new_item(limits="erp", priority=9) for _ in range(50)))
    bench.place(*(new_item() for _ in range(4)))
    bench.loop.turn()
    assert sent(bench) == {"erp": 3, None: 4}
    bench.hand.claim_only(bench.hand.rows("sent"))
    bench.loop.turn()
    assert sent(bench) == {}


def test_an_ended_task_makes_room(bench: Bench) -> None:
    """Once a task of the limit has ended, the next is sent."""
    bench.place(*(new_item(limits="erp") for _ in range(5)))
    bench.loop.turn()
    rows = bench.hand.rows("sent")
    bench.hand.claim_only(rows)
    with bench.metadata.session() as session:
        leases.settle(session, leases.lock(session, [rows[0].id])[rows[0].id], Outcome.SUCCESS)
        session.commit()
    bench.loop.turn()
    assert sent(bench) == {"erp": 1}


def test_rows_that_are_not_sent_take_no_place(bench: Bench) -> None:
    """A row that a pool's capacity leaves out holds no place of the limit: another pool's row has it in the same turn."""
    bench.place(new_item(priority=9), new_item(limits="erp"))
    bench.place(*(new_item(pool="gpu", limits="erp") for _ in range(4)))
    with bench.metadata.session() as session:
        capacity = {("eu-west-1", "default"): 1, ("eu-west-1", "gpu"): 9}
        rows = items.sendable(session, capacity, 9, limits=bench.loop._limits)
        assert Counter((row.pool, row.limits) for row in rows) == {("default", None): 1, ("gpu", "erp"): 3}
        session.rollback()


def test_priority_counts_between_classes(bench: Bench) -> None:
    """Rows with and without a limit stand by priority and then age, together."""
    new = [new_item(limits=limits, priority=priority) for priority in (1, 5, 3) for limits in ("erp", None)]
    order = [row.id for row in sorted(bench.place(*new), key=lambda row: -row.priority)]
    bench.loop.turn()
    assert {str(item.item_id) for item in bench.queued()} == set(order)
    assert [row.priority for row in bench.hand.rows("sent")].count(5) == 2


def test_teams_take_turns_within_a_limit(bench: Bench) -> None:
    """A limit holds also where teams take turns, and costs the team whose tasks it holds back nothing."""
    bench.loop._shares = FairShares([Team(name="a", bundles=("a",)), Team(name="b", bundles=("b",))])
    bench.place(*(new_item(team="a", limits="erp") for _ in range(30)))
    bench.place(*(new_item(team="b") for _ in range(30)))
    bench.loop.turn()
    assert Counter(row.team for row in bench.hand.rows("sent")) == {"a": 3, "b": 7}


FALLBACK = {
    "fallback": [{"region": "us-east-1", "pool": "default"}],
    "fallback_after": 60.0,
    "why": "",
    "tried": [],
}


def let_fallback_be_due(bench: Bench) -> None:
    """Let the fallback time of all work pass, and the outbox look."""
    with bench.metadata.session() as session:
        past = clock.now(session) - timedelta(seconds=1)
    bench.change(fallback_at=past)
    bench.now += 60
    bench.loop.turn()


def regions(bench: Bench) -> Counter[str]:
    return Counter(row.region for row in bench.hand.rows("placed", "sent"))


def test_work_under_a_full_limit_does_not_move(bench: Bench) -> None:
    """Work that a limit holds back waits for its turn, and not for a worker: it stays, also at the moment when a place is free."""
    bench.place(*(new_item(limits="erp", placement=FALLBACK) for _ in range(9)))
    bench.loop.turn()
    rows = bench.hand.rows("sent")
    bench.hand.claim_only(rows)
    let_fallback_be_due(bench)
    assert regions(bench) == {"eu-west-1": 6}
    with bench.metadata.session() as session:
        leases.settle(session, leases.lock(session, [rows[0].id])[rows[0].id], Outcome.SUCCESS)
        session.commit()
    let_fallback_be_due(bench)
    assert regions(bench) == {"eu-west-1": 6}
    assert sent(bench) == {"erp": 1}


def test_work_moves_from_a_queue_that_does_not_take_it(bench: Bench) -> None:
    """A limit that is in use elsewhere pins no work that it has let go, and that its queue does not take."""
    bench.place(*(new_item(limits="erp", placement=FALLBACK) for _ in range(9)))
    bench.loop.turn()
    bench.hand.claim_only(bench.hand.rows("sent")[:1])
    with bench.metadata.session() as session:
        ids = [row.id for row in session.query(WorkItemRow).filter_by(state=ItemState.SENT)]
        items.postpone(session, ids, clock.now(session), "again")
        session.commit()
    bench.queues["default"].is_down = True
    bench.loop.turn()
    let_fallback_be_due(bench)
    assert regions(bench) == {"eu-west-1": 6, "us-east-1": 2}


def test_work_under_an_unused_limit_moves(bench: Bench) -> None:
    """Where no worker claims what a limit has let go, the work moves as any other."""
    bench.place(*(new_item(limits="erp", placement=FALLBACK) for _ in range(9)))
    bench.loop.turn()
    with bench.metadata.session() as session:
        bench.change(sent_at=clock.now(session) - timedelta(seconds=10))
    let_fallback_be_due(bench)
    assert regions(bench) == {"us-east-1": 9}


def test_other_work_moves_beside_a_full_limit(bench: Bench) -> None:
    """A full limit keeps its own work alone from the fallback."""
    bench.place(*(new_item(limits="erp", placement=FALLBACK) for _ in range(5)))
    bench.loop.turn()
    bench.hand.claim_only(bench.hand.rows("sent"))
    bench.place(new_item(placement=FALLBACK))
    let_fallback_be_due(bench)
    assert regions(bench) == {"eu-west-1": 2, "us-east-1": 1}


def test_work_that_may_not_be_sent_yet_does_not_move(bench: Bench) -> None:
    """A row that a claim has given back for later keeps its region and its time."""
    bench.place(new_item(placement=FALLBACK))
    with bench.metadata.session() as session:
        later = clock.now(session) + timedelta(minutes=5)
    bench.change(not_before=later)
    let_fallback_be_due(bench)
    [row] = bench.hand.rows()
    assert (row.region, row.not_before) == ("eu-west-1", later)


def test_limit_of_a_pool_holds_for_all_of_it(bench: Bench) -> None:
    """Every task of the limit's pool counts, with or without a name; other pools have their own room."""
    limited(bench, Limit(name="gpus", max_running=2, pools=("gpu@eu-west-1",)))
    bench.place(*(new_item(pool="gpu") for _ in range(6)), *(new_item() for _ in range(6)))
    bench.loop.turn()
    assert Counter(row.pool for row in bench.hand.rows("sent")) == {"gpu": 2, "default": 6}


def test_triggers_count_towards_no_limit(bench: Bench) -> None:
    """Triggers that wait or run in a limit's pool take no task's place, and are held back by none."""
    limited(bench, Limit(name="here", max_running=2, pools=(EUROPE.name,)))
    [task] = bench.place(new_item())
    with bench.metadata.session() as session:
        deferred = session.get(WorkItemRow, task.id)
        leases.settle(session, deferred, Outcome.SUCCESS)
        triggers = [items.place_trigger(session, deferred, number).id for number in range(3)]
        session.commit()
        for row in leases.lock(session, triggers).values():
            leases.claim(session, row, "w", 60, 600, {"ti_context": {}})
        session.commit()
        [load] = bench.loop._limits.loads(session, clock.now(session))
        assert (load.running, load.waiting) == (0, 0)
    bench.place(*(new_item() for _ in range(5)))
    bench.loop.turn()
    rows = bench.hand.rows("sent")
    assert len(rows) == 2
    bench.hand.claim_only(rows)
    with bench.metadata.session() as session:
        found = leases.lock(session, triggers)
        admission = bench.loop._limits.admission(session, found.values(), clock.now(session))
        assert [admission.held_back(row) for row in found.values()] == [None] * 3


def test_messages_of_a_dead_pool_keep_nobody_back(metadata: Metadata, settings: Settings) -> None:
    """Messages that a region has not claimed for some seconds hold no place of the limit: another region's tasks are sent."""
    america = limited(Bench(metadata, settings, US), ERP)
    europe = limited(Bench(metadata, settings, EUROPE), ERP)
    america.place(*(new_item(region="us-east-1", limits="erp") for _ in range(5)))
    europe.place(*(new_item(limits="erp") for _ in range(5)))
    america.loop.turn()
    europe.loop.turn()
    assert Counter(row.region for row in europe.hand.rows("sent")) == {"us-east-1": 3}
    with metadata.session() as session:
        old = clock.now(session) - timedelta(seconds=6)
    for row in america.hand.rows("sent"):
        with metadata.session() as session:
            session.get(WorkItemRow, row.id).sent_at = old
            session.commit()
    europe.loop.turn()
    america.loop.turn()
    assert Counter(row.region for row in europe.hand.rows("sent")) == {"us-east-1": 3, "eu-west-1": 3}


def test_rate_is_kept_by_the_outbox(bench: Bench) -> None:
    """As many are sent as may start within this minute."""
    limited(bench, Limit(name="erp", starts_per_minute=4))
    with bench.metadata.session() as session:
        now = clock.now(session)
        session.add_all(
            LimitStartRow(name="erp", started_at=now - timedelta(seconds=ago)) for ago in (90, 30, 20, 10)
        )
        session.commit()
    bench.place(*(new_item(limits="erp") for _ in range(5)))
    bench.loop.turn()
    assert sent(bench) == {"erp": 1}


def test_loads_are_those_of_the_ledger(bench: Bench) -> None:
    """Running, waiting and recent starts of each limit are read as they are; what is full has a sentence."""
    bench.place(*(new_item(limits="erp") for _ in range(5)))
    bench.loop.turn()
    bench.hand.claim_only(bench.hand.rows("sent"))
    with bench.metadata.session() as session:
        [load] = Limits([ERP]).loads(session, clock.now(session))
    assert (load.running, load.waiting, load.full) == (3, 2, "limit erp: 3 of 3 tasks run")


# --- many connections at one time ---------------------------------------------------------------------


@pytest.fixture
def database(postgres: Postgres, postgres_template: str) -> Iterator[Metadata]:
    name = postgres.create(postgres_template)
    with pointed_at(postgres.url(name)) as metadata:
        yield metadata
    postgres.drop(name)


class Claimer(threading.Thread):
    """Claims and ends items at random, as the gateways' threads do, each in a transaction of its own."""

    def __init__(self, metadata: Metadata, limits: Limits, ids: list[str], seed: int) -> None:
        super().__init__()
        self._metadata, self._limits, self._ids = metadata, limits, ids
        self._random = random.Random(seed)
        self.granted, self.refused, self.faults = 0, 0, list[str]()

    def run(self) -> None:
        try:
            for _ in range(25):
                self._turn()
        except Exception as error:  # noqa: BLE001 - reported by the test
            self.faults.append(repr(error))

    def _turn(self) -> None:
        with self._metadata.session() as session:
            rows = leases.lock(session, self._random.sample(self._ids, 3))
            now = clock.now(session)
            admission = self._limits.admission(session, rows.values(), now)
            for row in rows.values():
                if row.state == ItemState.CLAIMED:
                    if self._random.random() < 0.6:
                        leases.release(session, row, "again")
                elif admission.held_back(row) is not None:
                    self.refused += 1
                else:
                    leases.claim(session, row, "w", 60.0, 600.0, {}, at=now)
                    admission.started(row)
                    self.granted += 1
            # Between the count and the commit: a count without the lock would let others in.
            time.sleep(self._random.random() * 0.01)
            session.commit()


def test_concurrent_claims_do_not_exceed_a_limit(database: Metadata) -> None:
    """Ten connections that claim and release as they like never have more running than the limit, at any commit."""
    limits = Limits([ERP])
    with database.session() as session:
        rows = items.place(session, [new_item(limits="erp") for _ in range(30)], 1)
        session.commit()
        ids = [row.id for row in rows]
    claimers = [Claimer(database, limits, ids, seed) for seed in range(10)]
    most = 0
    for claimer in claimers:
        claimer.start()
    while any(claimer.is_alive() for claimer in claimers):
        with database.session() as session:
            query = select(func.count()).where(WorkItemRow.state == ItemState.CLAIMED)
            most = max(most, session.execute(query).scalar_one())
    for claimer in claimers:
        claimer.join()
    assert [fault for claimer in claimers for fault in claimer.faults] == []
    assert most == 3
    assert sum(claimer.granted for claimer in claimers) > 20
    assert sum(claimer.refused for claimer in claimers) > 20


def test_concurrent_claims_do_not_exceed_a_rate(database: Metadata) -> None:
    """Ten connections together let as many start as the rate allows."""
    limits = Limits([Limit(name="erp", starts_per_minute=7)])
    with database.session() as session:
        ids = [row.id for row in items.place(session, [new_item(limits="erp") for _ in range(30)], 1)]
        session.commit()
    claimers = [Claimer(database, limits, ids, seed) for seed in range(10)]
    began = time.monotonic()
    for claimer in claimers:
        claimer.start()
    for claimer in claimers:
        claimer.join()
    assert [fault for claimer in claimers for fault in claimer.faults] == []
    assert time.monotonic() - began < 60, "the machine is too slow: a minute has passed"
    assert sum(claimer.granted for claimer in claimers) == 7
    with database.session() as session:
        assert session.execute(select(func.count()).select_from(LimitStartRow)).scalar_one() == 7


def test_limit_is_locked_for_its_own_tasks_alone(database: Metadata) -> None:
    """A claim of tasks without the limit does not wait for one that holds it."""
    limits = Limits([ERP])
    with database.session() as session:
        mine, other = items.place(session, [new_item(limits="erp"), new_item()], 1)
        session.commit()
        with database.session() as first, database.session() as second:
            limits.admission(first, [mine], clock.now(first))
            began = time.monotonic()
            limits.admission(second, [other], clock.now(second))
            assert time.monotonic() - began < 1
