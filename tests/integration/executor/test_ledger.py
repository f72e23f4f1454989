"""The ledger's functions: who holds what, until when, under which epoch; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from tests.support.airflow_home import Metadata
from tests.support.items import new_item, send

from airbridge.core.protocol import Heartbeat, LeaseRef, Versions, WorkerState
from airbridge.executor.ledger import backlogs, clock, events, items, leases, records, workers
from airbridge.executor.ledger.identity import certificates, revocations, tokens
from airbridge.executor.ledger.identity.models import CertificateRow
from airbridge.executor.ledger.items import NewItem
from airbridge.executor.ledger.models import EventRow, Outcome, WorkItemRow
from airbridge.executor.ledger.records import Applied

VERSIONS = Versions(airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.11.7")


@pytest.fixture
def session(metadata: Metadata) -> Iterator[Any]:
    with metadata.session() as session:
        yield session
        session.rollback()


def place(session: Any, *new: NewItem) -> list[WorkItemRow]:
    rows = items.place(session, new or (new_item(),), 1)
    session.flush()
    return rows


def claim(session: Any, row: WorkItemRow, worker: str = "w1", lost_after: float = 600.0) -> LeaseRef:
    epoch = leases.claim(session, row, worker, 60.0, lost_after, {"start_date": "now"})
    return LeaseRef(item_id=UUID(row.id), epoch=epoch)


def event_names(session: Any) -> list[str]:
    session.flush()
    return [row.event for row in session.query(EventRow).order_by(EventRow.id)]


# --- Time


def test_the_clock_is_the_databases(session: Any) -> None:
    """Time is aware, in UTC, about now, and moves on within a transaction."""
    first = clock.now(session)
    assert first.tzinfo is UTC
    assert abs(datetime.now(UTC) - first) < timedelta(seconds=5)
    assert clock.now(session) >= first


# --- Placing


def test_placed_row_waits_for_sending(session: Any) -> None:
    """A new item is placed at epoch 0, due at once."""
    [row] = place(session)
    assert (row.state, row.epoch, row.sends, row.fallback_at) == ("placed", 0, 0, None)
    assert row.not_before <= clock.now(session)
    assert event_names(session) == ["item.placed"]


def test_open_row_is_taken_over(session: Any) -> None:
    """Queueing the same task instance again keeps its row, with the new fields."""
    ti_id = str(uuid4())
    [row] = place(session, new_item(ti_id=ti_id, priority=1))
    [again] = items.place(session, [new_item(ti_id=ti_id, priority=9)], 2)
    assert again.id == row.id
    assert (again.priority, again.owner_job_id, again.epoch) == (9, 2, 0)


def test_moved_row_makes_message_stale(session: Any) -> None:
    """Moving a row raises its epoch: the message on the old queue is stale."""
    ti_id = str(uuid4())
    [row] = place(session, new_item(ti_id=ti_id))
    send(session, [row.id], clock.now(session) + timedelta(hours=1))
    [again] = items.place(session, [new_item(ti_id=ti_id, region="us-east-1")], 1)
    assert (again.state, again.region, again.epoch) == ("placed", "us-east-1", 1)


def test_requeued_task_cancels_held_row(session: Any) -> None:
    """The attempt that a worker holds is given up; the task gets a new row."""
    ti_id = str(uuid4())
    [row] = place(session, new_item(ti_id=ti_id))
    claim(session, row)
    [again] = place(session, new_item(ti_id=ti_id))
    assert again.id != row.id
    assert (row.state, row.outcome) == ("settled", Outcome.CANCELLED)


def test_refused_task_is_settled(session: Any) -> None:
    """A task that cannot be placed is settled at once and waits for nothing."""
    row = items.refuse(session, new_item(), 1, "no such region")
    assert (row.state, row.outcome, row.detail) == ("settled", Outcome.UNPLACEABLE, "no such region")
    assert items.unacknowledged(session, 1) == [row]
    assert "item.unplaceable" in event_names(session)


# --- Sending


def test_sendable_is_by_priority_then_age(session: Any) -> None:
    """Higher priority goes first, older first among equals, across places."""
    low, high, other = (
        new_item(priority=1),
        new_item(priority=5),
        new_item(priority=3, region="us-east-1"),
    )
    older = place(session, low)[0]
    place(session, new_item(priority=1), high, other)
    found = items.sendable(session, {("eu-west-1", "default"): 9, ("us-east-1", "default"): 9}, 3)
    assert [row.priority for row in found] == [5, 3, 1]
    assert found[2].id == older.id


def test_sendable_keeps_to_capacity(session: Any) -> None:
    """A place without capacity gets nothing; one with capacity, no more than that."""
    place(session, *(new_item() for _ in range(4)), new_item(pool="gpu"))
    found = items.sendable(session, {("eu-west-1", "default"): 2, ("eu-west-1", "gpu"): 0}, 100)
    assert [row.pool for row in found] == ["default", "default"]


def test_postponed_rows_wait(session: Any) -> None:
    """A row whose send failed is left alone until it is due."""
    [row] = place(session)
    items.postpone(session, [row.id], clock.now(session) + timedelta(hours=1), "region out of reach")
    assert items.sendable(session, {("eu-west-1", "default"): 9}, 9) == []
    session.refresh(row)
    assert row.detail == "region out of reach"


def test_an_expired_message_is_sent_again(session: Any) -> None:
    """A row whose message expired unclaimed is placed again; one that was claimed is not."""
    unclaimed, claimed = place(session, new_item(), new_item())
    send(session, [unclaimed.id, claimed.id], clock.now(session) - timedelta(seconds=1))
    claim(session, claimed)
    assert items.return_expired(session, 9, region="us-east-1") == 0
    assert items.return_expired(session, 9, region="eu-west-1") == 1
    assert (unclaimed.state, claimed.state) == ("placed", "claimed")


def test_late_confirmation_keeps_claim(session: Any) -> None:
    """A worker may claim before the outbox notes that the message was sent."""
    [row] = place(session)
    until = clock.now(session) + timedelta(minutes=1)
    items.reserve(session, [row.id], until)
    claim(session, row)
    items.mark_sent(session, [row.id], until, at=clock.now(session), reserved_until=until)
    items.postpone(session, [row.id], clock.now(session), "never mind")
    session.refresh(row)
    assert (row.state, row.sends) == ("claimed", 1)


def test_unclaimed_item_moves_to_fallback(session: Any) -> None:
    """The next place of the fallback takes it, under a new epoch; the one it left becomes the last resort."""
    fallback = [{"region": "us-east-1", "pool": "default"}]
    placement = {"fallback": fallback, "fallback_after": -1.0, "why": "", "tried": []}
    [row] = place(session, new_item(placement=placement))
    [stranded] = items.stranded(session, "eu-west-1", 9)
    assert stranded.id == row.id
    items.reroute(session, row, "nobody took it")
    assert (row.region, row.epoch, row.state) == ("us-east-1", 1, "placed")
    assert row.placement["tried"] == ["eu-west-1"]
    assert row.placement["fallback"] == [{"region": "eu-west-1", "pool": "default"}]
    assert "item.rerouted" in event_names(session)


def test_claimed_work_does_not_move(session: Any) -> None:
    """Claimed work is not moved to its fallback."""
    placement = {"fallback": [{"region": "us-east-1", "pool": "default"}], "fallback_after": -1.0}
    [row] = place(session, new_item(placement=placement))
    claim(session, row)
    assert items.stranded(session, "eu-west-1", 9) == []


# --- Leases


def test_claim_raises_epoch(session: Any) -> None:
    """The lease and the fence are measured from the database's clock."""
    [row] = place(session)
    lease = claim(session, row, lost_after=600)
    now = clock.now(session)
    assert (row.state, row.epoch, lease.epoch, row.worker_id) == ("claimed", 1, 1, "w1")
    assert timedelta(seconds=50) < row.lease_until - now <= timedelta(seconds=60)
    assert timedelta(seconds=590) < row.lost_at - now <= timedelta(seconds=600)


def test_numbers_beyond_the_calendar(session: Any) -> None:
    """A row may hold a number from before hints were bounded: it is moved, claimed and renewed as with ten years."""
    policy = {"lost_after": 1e12, "stop_after": None, "replace": True}
    fallback = [{"region": "us-east-1", "pool": "default"}]
    [row] = place(
        session,
        new_item(disconnect=policy, placement={"fallback": fallback, "fallback_after": 1e12, "why": ""}),
    )
    longest = clock.now(session) + timedelta(days=3649)
    assert row.fallback_at > longest
    items.reroute(session, row, "no worker")
    assert row.fallback_at > longest
    lease = claim(session, row, lost_after=1e12)
    assert row.lost_at > longest
    assert leases.renew(session, "w1", [lease], 60.0) == {lease}
    assert row.lost_at > longest


@pytest.mark.parametrize("seconds", [1e12, float("inf"), float("nan")])
def test_time_after_is_a_date(session: Any, seconds: float) -> None:
    """No number of seconds, and none that is no number, leads beyond the calendar."""
    now = clock.now(session)
    assert clock.after(now, seconds) == now + timedelta(days=3650)
    assert clock.after(now, 60.0) == now + timedelta(seconds=60)


def test_only_holder_renews_lease(session: Any) -> None:
    """Another worker's lease, an old epoch, a settled item and an unknown one are not renewed."""
    mine, impatient, theirs, settled = place(
        session, new_item(), new_item(disconnect={"lost_after": 30.0}), new_item(), new_item()
    )
    kept, short, foreign, over = claim(session, mine), claim(session, impatient), claim(session, theirs, "w2"), claim(session, settled)  # fmt: skip
    leases.settle(session, settled, Outcome.SUCCESS)
    before = mine.lost_at
    asked = [kept, short, foreign, over, LeaseRef(item_id=kept.item_id, epoch=0), LeaseRef(item_id=uuid4(), epoch=1)]  # fmt: skip
    assert leases.renew(session, "w1", asked, 60.0) == {kept, short}
    session.refresh(mine)
    session.refresh(impatient)
    assert mine.lost_at >= before
    assert impatient.lost_at - clock.now(session) <= timedelta(seconds=30)


def test_a_released_row_keeps_its_epoch(session: Any) -> None:
    """The next grant raises it, so the message of the grant that was given back is stale."""
    [row] = place(session)
    claim(session, row)
    leases.release(session, row, "drained")
    assert (row.state, row.epoch, row.worker_id, row.lost_at) == ("placed", 1, None, None)
    assert claim(session, row).epoch == 2


def test_released_row_waits_before_its_fallback(session: Any) -> None:
    """Work that a worker gives back after hours is offered to the region's others first."""
    fallback = [{"region": "us-east-1", "pool": "default"}]
    placement = {"fallback": fallback, "fallback_after": 60.0, "why": "", "tried": []}
    [row] = place(session, new_item(placement=placement))
    claim(session, row)
    row.fallback_at = clock.now(session) - timedelta(hours=2)
    session.flush()
    leases.release(session, row, "drained")
    assert items.stranded(session, "eu-west-1", 9) == []
    assert row.fallback_at > clock.now(session) + timedelta(seconds=50)


def test_overdue_means_past_lost_at(session: Any) -> None:
    """A lease that ran out may still be renewed; one past lost_after is fenced."""
    late, alive = place(session, new_item(), new_item())
    claim(session, late, lost_after=-1)
    leases.claim(session, alive, "w1", -5.0, 600.0, {})
    assert [row.id for row in leases.overdue(session, 9)] == [late.id]


def test_lock_omits_unknown_ids(session: Any) -> None:
    """Rows are found by id, whatever form the id has."""
    [row] = place(session)
    assert leases.lock(session, [UUID(row.id), uuid4()]) == {row.id: row}


# --- Outcomes


def test_outcome_is_reported_once(session: Any) -> None:
    """Each scheduler sees its own settled rows until it has acknowledged them."""
    mine, theirs = place(session, new_item(), new_item())
    theirs.owner_job_id = 2
    for row in (mine, theirs):
        leases.settle(session, row, Outcome.SUCCESS)
    assert items.unacknowledged(session, 1) == [mine]
    items.acknowledge(session, [mine.id])
    assert items.unacknowledged(session, 1) == []


def test_adoption_covers_open_items(session: Any) -> None:
    """Open rows and failures that are not reported yet are adopted; a success that is not reported yet is
    taken over only.
    """
    open_, lost, done, told = place(session, *(new_item() for _ in range(4)))
    leases.settle(session, lost, Outcome.LOST)
    leases.settle(session, done, Outcome.SUCCESS)
    leases.settle(session, told, Outcome.LOST)
    items.acknowledge(session, [told.id])
    ti_ids = [row.ti_id for row in (open_, lost, done, told)]
    assert items.adopt(session, [*ti_ids, str(uuid4())], 7) == {open_.ti_id, lost.ti_id}
    assert [row.owner_job_id for row in (open_, lost, done, told)] == [7, 7, 7, 1]


def test_revoking_spares_what_a_worker_holds(session: Any) -> None:
    """Only unclaimed work can be taken back."""
    waiting, held = place(session, new_item(), new_item())
    claim(session, held)
    assert items.revoke(session, waiting.ti_id, "stuck")
    assert not items.revoke(session, held.ti_id, "stuck")
    assert not items.revoke(session, str(uuid4()), "stuck")
    assert (waiting.outcome, held.state) == (Outcome.CANCELLED, "claimed")


def test_purge_removes_old_rows(session: Any) -> None:
    """Settled rows past the retention are deleted with their records; open ones stay whatever their age."""
    old, recent, open_ = place(session, *(new_item() for _ in range(3)))
    for row in (old, recent):
        records.add(session, row.id, 1, [Applied(1, 200, {}, None)])
        leases.settle(session, row, Outcome.SUCCESS)
    ids = [old.id, recent.id, open_.id]
    long_ago = clock.now(session) - timedelta(days=60)
    old.settled_at = open_.placed_at = long_ago
    session.flush()
    assert items.purge(session, long_ago + timedelta(days=1)) == 1
    session.expire_all()
    assert set(leases.lock(session, ids)) == set(ids[1:])
    assert records.find(session, ids[0], 1) == {}
    assert set(records.find(session, ids[1], 1)) == {1}


# --- Backlog and workers


def enrol(session: Any, worker_id: str, region: str = "eu-west-1", pool: str = "default") -> None:
    workers.enrol(
        session,
        worker_id=worker_id,
        region=region,
        pool=pool,
        versions=VERSIONS,
        thumbprint="t" * 64,
        certificate_expires_at=clock.now(session) + timedelta(hours=1),
    )


def beat(session: Any, worker_id: str, **said: Any) -> Any:
    now = said.pop("sent_at", clock.now(session))
    return workers.heartbeat(
        session,
        worker_id,
        Heartbeat(sent_at=now, versions=VERSIONS, slots_used=0, **{"slots_total": 4, **said}),
    )


def test_backlog_counts_live_workers(session: Any) -> None:
    """The backlog counts waiting items and live workers; draining, silent and unwanted workers are left
    out.
    """
    waiting, sent, held = place(session, *(new_item() for _ in range(3)))
    send(session, [sent.id], clock.now(session) + timedelta(hours=1))
    claim(session, held)
    for name in ("alive-1", "alive-2", "draining", "unwanted", "silent"):
        enrol(session, name)
    beat(session, "alive-1", slots_total=4)
    beat(session, "alive-2", slots_total=2)
    beat(session, "draining", state=WorkerState.DRAINING)
    beat(session, "unwanted")
    workers.set_wanted(session, "unwanted", "draining")
    found = backlogs.backlog(session)["eu-west-1", "default"]
    assert (found.placed, found.sent, found.claimed) == (1, 1, 1)
    assert (found.slots, found.workers_alive) == (6, 2)
    assert found.oldest_placed_at == min(waiting.placed_at, sent.placed_at)
    assert backlogs.backlog(session, region="us-east-1") == {}


def test_heartbeat_stores_clock_skew(session: Any) -> None:
    """A worker's report of itself is stored for the operator; a worker that never enrolled has none."""
    enrol(session, "w1")
    row = beat(session, "w1", sent_at=clock.now(session) + timedelta(minutes=3), journal_pending=5)
    assert 175 < row.clock_skew_seconds < 185
    assert (row.slots_total, row.journal_pending) == (4, 5)
    assert beat(session, "stranger") is None
    assert [each.id for each in workers.list_all(session)] == ["w1"]
    assert workers.get(session, "stranger") is None


def test_enrolling_keeps_desired_state(session: Any) -> None:
    """A drained worker that restarts is still drained."""
    enrol(session, "w1")
    workers.set_wanted(session, "w1", "draining", "disk swap")
    enrol(session, "w1", pool="gpu")
    row = workers.get(session, "w1")
    assert row is not None
    assert (row.wanted, row.comment, row.pool) == ("draining", "disk swap", "gpu")


# --- Tokens, revocations, records, events


def test_a_join_token_is_used_up(session: Any) -> None:
    """A token with two uses is good twice; only its hash is kept."""
    row = tokens.create(
        session,
        kind="join",
        secret="s3cret",
        owner="ops",
        scopes={"region": "eu-west-1"},
        ttl_seconds=60,
        uses=2,
    )
    assert row.hash == tokens.hash_of("s3cret") != "s3cret"
    assert tokens.redeem_join(session, "s3cret") is not None
    used_up = tokens.redeem_join(session, "s3cret")
    assert used_up is not None
    assert used_up.uses_left == 0
    assert tokens.redeem_join(session, "s3cret") is None


def test_uncounted_token_lasts_until_expiry(session: Any) -> None:
    """Expired, revoked, unknown and other kinds of tokens are refused."""
    lasting = tokens.create(session, kind="join", secret="a", owner="o", scopes={}, ttl_seconds=60)
    tokens.create(session, kind="join", secret="b", owner="o", scopes={}, ttl_seconds=-1)
    access = tokens.create(
        session, kind="access", secret="c", owner="o", scopes=["workers:drain"], ttl_seconds=60
    )
    assert tokens.redeem_join(session, "a") is not None
    assert tokens.redeem_join(session, "a") is not None
    assert [tokens.redeem_join(session, secret) for secret in "bcd"] == [None] * 3
    found = tokens.find_access(session, "c")
    assert found is not None
    assert (found.id, found.last_used_at is not None) == (access.id, True)
    assert tokens.find_access(session, "a") is None
    tokens.revoke(session, lasting.id)
    assert tokens.redeem_join(session, "a") is None
    assert tokens.revoke(session, "nope") == []
    assert len(tokens.list_all(session)) == 3
    assert [row.id for row in tokens.list_all(session, "access")] == [access.id]


@pytest.mark.parametrize(
    ("kind", "value"),
    [("worker", "w1"), ("certificate", "f" * 64), ("pool", "eu-west-1/gpu"), ("issuer", "ca-1")],
)
def test_revocations_apply_to_what_they_name(session: Any, kind: Any, value: str) -> None:
    """A worker, a certificate, a pool or an issuer can be refused, and taken back."""
    peer = {"worker": "w1", "region": "eu-west-1", "pool": "gpu", "thumbprint": "f" * 64, "issuer": "ca-1"}
    assert revocations.is_revoked(session, **peer) is None
    revocations.add(session, kind, value, "stolen", "ops")
    assert revocations.add(session, kind, value, "again", "ops").reason == "stolen"
    found = revocations.is_revoked(session, **peer)
    assert found is not None
    assert (found.kind, found.value) == (kind, value)
    assert revocations.is_revoked(session, worker="w2", region="us-east-1", pool="gpu") is None
    assert revocations.is_revoked(session) is None
    assert revocations.remove(session, kind, value)
    assert not revocations.remove(session, kind, value)
    assert revocations.is_revoked(session, **peer) is None


def test_records_are_keyed_by_epoch(session: Any) -> None:
    """A repeated write finds the answer to the one that was applied."""
    item = str(uuid4())
    records.add(session, item, 1, [Applied(1, 204, {"x": "y"}, "{}")])
    records.add(session, item, 2, [Applied(1, 200, {}, None)])
    [found] = records.find(session, item, 1).values()
    assert (found.status, found.headers, found.body) == (204, {"x": "y"}, "{}")


def test_events_carry_their_ids(session: Any) -> None:
    """An event of a work item names its ids and its trace; old ones can be purged once the item is."""
    [row] = place(session, new_item(trace={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}))
    event = events.record(session, "claim.granted", "gateway", row=row, worker_id="w9", why="asked")
    session.flush()
    assert (event.item_id, event.ti_id, event.region) == (row.id, row.ti_id, "eu-west-1")
    assert (event.worker_id, event.trace_id, event.detail) == ("w9", "a" * 32, {"why": "asked"})
    later = clock.now(session) + timedelta(days=1)
    assert events.purge(session, later) == 0
    leases.settle(session, row, Outcome.CANCELLED, "over")
    session.flush()
    assert items.purge(session, later) == 1
    assert events.purge(session, later - timedelta(days=2)) == 0
    assert events.purge(session, later) == 3


def silent(session: Any, worker_id: str, hours: float, **said: Any) -> Any:
    """A worker whose last heartbeat and last certificate are so long ago."""
    enrol(session, worker_id)
    row = beat(session, worker_id, **said)
    now = clock.now(session)
    row.last_heartbeat_at = row.enrolled_at = now - timedelta(hours=hours)
    row.certificate_expires_at = now - timedelta(hours=hours - 1)
    session.flush()
    return row


def test_lost_worker_expires(session: Any) -> None:
    """A worker that was silent for the time is forgotten with its certificates, drained or not; a recent one stays."""
    for name in ("lost", "drained", "recent"):
        row = silent(session, name, 3 if name == "recent" else 30)
        certificates.issue(session, row, name.ljust(64, "0"), row.certificate_expires_at, parent=None)
    workers.set_wanted(session, "drained", "draining")
    session.flush()
    found = workers.expire(session, clock.now(session) - timedelta(hours=24))
    assert ["drained", "lost"] == [each.id for each in found]
    assert ["recent"] == [each.id for each in workers.list_all(session)]
    assert ["recent".ljust(64, "0")] == list(session.scalars(select(CertificateRow.thumbprint)))
    enrol(session, "drained")
    row = workers.get(session, "drained")
    assert row is not None
    assert "active" == row.wanted


def test_worker_with_ties_is_kept(session: Any) -> None:
    """Kept are workers that hold work, whose certificate can still be used, or that an operator took out for maintenance."""
    [held] = place(session)
    silent(session, "holder", 30)
    claim(session, held, "holder")
    silent(session, "certified", 30).certificate_expires_at = clock.now(session) + timedelta(minutes=5)
    silent(session, "maintained", 30)
    workers.set_wanted(session, "maintained", "maintenance", "new disk")
    never = clock.now(session) - timedelta(hours=30)
    enrol(session, "fresh")
    assert [] == workers.expire(session, never + timedelta(hours=6))
    assert {"holder", "certified", "maintained", "fresh"} == {each.id for each in workers.list_all(session)}


def test_worker_without_heartbeat_expires(session: Any) -> None:
    """A worker that enrolled and never sent a heartbeat is forgotten by its enrolment."""
    enrol(session, "mute")
    row = workers.get(session, "mute")
    assert row is not None
    row.enrolled_at = clock.now(session) - timedelta(hours=30)
    row.certificate_expires_at = row.enrolled_at + timedelta(hours=1)
    session.flush()
    assert ["mute"] == [each.id for each in workers.expire(session, clock.now(session) - timedelta(hours=24))]
