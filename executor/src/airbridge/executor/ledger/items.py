"""Work items: place, send, claim, renew, release, settle. Every function takes an open session and never commits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import partial
from itertools import zip_longest
from typing import Any
from uuid import uuid4

from sqlalchemy import and_, delete, false, not_, or_, select, tuple_

from airbridge.core.protocol import ItemKind
from airbridge.core.regions import DEFAULT_TEAM
from airbridge.executor.ledger import _locking, clock, events
from airbridge.executor.ledger._locking import for_update, locked, write
from airbridge.executor.ledger.backlogs import PoolRef
from airbridge.executor.ledger.leases import fallback_due, settle, to_placed
from airbridge.executor.ledger.models import ItemState, Outcome, RecordRow, WorkItemRow
from airbridge.executor.ledger.sharing import fair_shares, usage
from airbridge.executor.ledger.sharing.fair_shares import FairShares
from airbridge.executor.ledger.sharing.limits import Limits, Room

NO_LIMITS = Limits()

# Rows that are deleted by one statement.
PURGE_BATCH = 1000

# Triggers have the names of their deferred task, whose next item may be open beside them.
OF_TASK = WorkItemRow.kind == ItemKind.TASK

# Outcomes that are reported to the scheduler as a failure, for as long as Airflow still has the task queued
# or running.
FAILURES = (Outcome.LOST, Outcome.FAILED, Outcome.UNPLACEABLE)


@dataclass(frozen=True, slots=True)
class NewItem:
    """Everything `place` writes of a task instance that has been queued."""

    ti_id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    queue: str
    region: str
    pool: str
    slots: int
    priority: int
    workload: dict[str, Any]
    placement: dict[str, Any]
    disconnect: dict[str, Any]
    warm: bool = True
    team: str = DEFAULT_TEAM
    #: Names of limits, with a space between them.
    limits: str | None = None
    trace: dict[str, str] = field(default_factory=dict)
    kind: str = ItemKind.TASK
    trigger_id: int | None = None
    id: str = field(default_factory=lambda: str(uuid4()))


# --- Placing --------------------------------------------------------------------------------------


def place(session: Any, new: Sequence[NewItem], owner_job_id: int | None) -> list[WorkItemRow]:
    """Write a row for each new item.

    An open row of the same task instance that no worker holds is taken over. One that a worker
    holds belongs to a run of the task that Airflow has given up (it queues the task anew), so it is
    cancelled and a new row takes its place.
    """
    now = clock.now(session)
    open_rows = _open_rows(session, [item.ti_id for item in new])
    return [_place(session, item, open_rows.get(item.ti_id), owner_job_id, now) for item in new]


def _place(
    session: Any, item: NewItem, row: WorkItemRow | None, owner_job_id: int | None, now: datetime
) -> WorkItemRow:
    held_until = now
    if row is not None and row.state == ItemState.CLAIMED:
        held_until = max(now, row.lease_until)
        settle(session, row, Outcome.CANCELLED, "queued anew by Airflow")
        row = None
    if row is None:
        row = _insert(session, item, now)
        # By then the former holder has stopped it, or cannot be reached.
        row.not_before = held_until
    else:
        _take_over(row, item, now)
    row.owner_job_id = owner_job_id
    why = item.placement.get("why")
    events.record(
        session, "item.placed", "executor", row=row, at=now, queue=item.queue, pool=item.pool, why=why
    )
    return row


def place_trigger(
    session: Any, deferred: WorkItemRow, trigger_id: int, *, at: datetime | None = None
) -> WorkItemRow:
    """Write the row of the trigger that the task of a settled row is deferred on: for the same pool, without slots."""
    now = at or clock.now(session)
    same = {
        name: getattr(deferred, name)
        for name in (
            *("ti_id", "dag_id", "run_id", "task_id", "map_index", "try_number", "queue", "region", "pool"),
            *("priority", "team", "warm"),
        )
    }
    # A trigger may run twice, and goes on through a cut, whatever its task's policy is.
    disconnect = {**deferred.disconnect, "stop_after": None, "replace": True}
    item = NewItem(
        **same,
        slots=0,
        disconnect=disconnect,
        workload={**deferred.workload, "resources": {}},
        placement={"fallback": [], "fallback_after": 0.0, "why": "its task runs there", "tried": []},
        trace=dict(deferred.trace),
        kind=ItemKind.TRIGGER,
        trigger_id=trigger_id,
    )
    row = _insert(session, item, now)
    events.record(session, "trigger.placed", "gateway", row=row, at=now, pool=row.pool, trigger_id=trigger_id)
    return row


def refuse(session: Any, item: NewItem, owner_job_id: int | None, detail: str) -> WorkItemRow:
    """Write a row, settled at once, for a task instance that cannot be placed; an open row of it is closed."""
    now = clock.now(session)
    row = _open_rows(session, [item.ti_id]).get(item.ti_id)
    if row is None:
        row = _insert(session, item, now)
    row.owner_job_id = owner_job_id
    settle(session, row, Outcome.UNPLACEABLE, detail)
    events.record(session, "item.unplaceable", "executor", row=row, at=now, queue=item.queue, reason=detail)
    return row


def _open_rows(session: Any, ti_ids: Collection[str]) -> dict[str, WorkItemRow]:
    query = locked(session, _locking.OPEN)
    return {row.ti_id: row for row in session.scalars(query, {"ti_ids": sorted(ti_ids)})}


def _insert(session: Any, item: NewItem, now: datetime) -> WorkItemRow:
    values = {each.name: getattr(item, each.name) for each in fields(item)}
    row = WorkItemRow(
        **values,
        state=ItemState.PLACED,
        epoch=0,
        sends=0,
        placed_at=now,
        not_before=now,
        fallback_at=fallback_due(item.placement, now),
    )
    session.add(row)
    return row


def _take_over(row: WorkItemRow, item: NewItem, now: datetime) -> None:
    moved = (row.region, row.pool) != (item.region, item.pool)
    for each in fields(item):
        if each.name != "id":
            setattr(row, each.name, getattr(item, each.name))
    row.fallback_at = fallback_due(item.placement, now)
    if moved:
        to_placed(row, now)
        row.epoch += 1


def adopt(session: Any, ti_ids: Collection[str], owner_job_id: int | None) -> set[str]:
    """Make `owner_job_id` the owner of these task instances; return those that the ledger adopts.

    Adopted are those with an open row, and those whose failure has not been reported to a scheduler. Rows that another
    transaction has locked keep their owner (call again): waiting for them here, while the scheduler has locked the task
    instances, could deadlock.
    """
    of_these = _unreported(ti_ids)
    query = select(WorkItemRow).where(of_these).order_by(WorkItemRow.id)
    for row in session.scalars(for_update(session, query, skip_locked=True)):
        row.owner_job_id = owner_job_id
    session.flush()
    adopted = or_(WorkItemRow.state != ItemState.SETTLED, WorkItemRow.outcome.in_(FAILURES))
    return set(session.scalars(select(WorkItemRow.ti_id).where(of_these, adopted)))


def _unreported(ti_ids: Collection[str]) -> Any:
    unreported = or_(WorkItemRow.state != ItemState.SETTLED, WorkItemRow.acknowledged_at.is_(None))
    return and_(WorkItemRow.ti_id.in_(list(ti_ids)), unreported, OF_TASK)


def owned_by_others(session: Any, ti_ids: Collection[str], owner_job_id: int | None) -> set[str]:
    """Return those of these task instances that have a row to report which another scheduler owns."""
    of_others = WorkItemRow.owner_job_id.is_distinct_from(owner_job_id)
    return set(session.scalars(select(WorkItemRow.ti_id).where(_unreported(ti_ids), of_others)))


def opened(session: Any, ti_ids: Collection[str]) -> dict[str, int | None]:
    """Return those of these task instances that have an open row, each with the scheduler that owns it."""
    return dict(session.execute(_locking.OPENED, {"ti_ids": sorted(ti_ids)}).all())


def revoke(session: Any, ti_id: str, detail: str) -> bool:
    """Cancel a task instance's unclaimed row; False if there is none, or another transaction holds it."""
    query = select(WorkItemRow).where(
        WorkItemRow.ti_id == ti_id, WorkItemRow.state.in_((ItemState.PLACED, ItemState.SENT)), OF_TASK
    )
    row = session.scalars(for_update(session, query, skip_locked=True)).one_or_none()
    if row is None:
        return False
    cancel(session, row, detail)
    return True


def cancel(session: Any, row: WorkItemRow, detail: str) -> None:
    """Cancel a locked row that Airflow no longer wants.

    A claimed row stays claimed while its lease lasts, so that no other attempt starts: its worker receives the order with
    its next heartbeat, and the row is settled once a heartbeat confirms that the process has ended. What the process
    writes until then is refused.
    """
    if row.outcome is None:
        events.record(session, "item.cancelled", "executor", row=row, reason=detail)
    if row.state == ItemState.CLAIMED and row.lease_until > clock.now(session):
        row.outcome, row.detail = Outcome.CANCELLED, detail
        session.flush()
    else:
        settle(session, row, Outcome.CANCELLED, row.detail if row.outcome else detail)


def running_before(session: Any, rows: Sequence[WorkItemRow], now: datetime) -> set[str]:
    """Return the ids of those rows whose task has an earlier attempt that a worker holds and may still run."""
    again = [row for row in rows if row.try_number > 1]
    if not again:
        return set()
    names = (WorkItemRow.dag_id, WorkItemRow.run_id, WorkItemRow.task_id, WorkItemRow.map_index)
    query = select(*names).where(
        tuple_(*names[:3]).in_(sorted({_task(row)[:3] for row in again})),
        WorkItemRow.state == ItemState.CLAIMED,
        WorkItemRow.lease_until > now,
        OF_TASK,
    )
    held = {tuple(found) for found in session.execute(query)}
    return {row.id for row in again if _task(row) in held}


def _task(row: WorkItemRow) -> tuple[Any, ...]:
    return (row.dag_id, row.run_id, row.task_id, row.map_index)


def reroute(session: Any, row: WorkItemRow, detail: str) -> None:
    """Move an unclaimed row to the next place of its fallback; the one it leaves becomes the last.

    The epoch is raised: a message left behind is stale.
    """
    now = clock.now(session)
    left = {"region": row.region, "pool": row.pool}
    next_place, *rest = row.placement["fallback"]
    row.placement = {
        **row.placement,
        "fallback": [*rest, left],
        "tried": [*row.placement.get("tried", []), row.region],
    }
    row.region, row.pool = next_place["region"], next_place["pool"]
    row.fallback_at = fallback_due(row.placement, now)
    row.epoch += 1
    row.sends = 0
    to_placed(row, max(now, row.not_before))
    row.detail = detail
    events.record(session, "item.rerouted", "outbox", row=row, at=now, left=left, reason=detail)
    session.flush()


def stranded(
    session: Any,
    region: str,
    limit: int,
    held_back: Callable[[datetime], Sequence[Any]] = lambda _now: (),
) -> list[WorkItemRow]:
    """Return unclaimed rows of `region` whose fallback is due, locked; those another process holds are left out.

    So are those that may not be sent yet, or that meet a condition of `held_back`: they have not waited for a worker.
    """
    now = clock.now(session)
    row = WorkItemRow
    held = and_(row.state == ItemState.PLACED, or_(false(), *held_back(now)))
    query = (
        select(row)
        .where(
            row.region == region,
            row.state.in_((ItemState.PLACED, ItemState.SENT)),
            row.fallback_at <= now,
            row.not_before <= now,
            not_(held),
        )
        .order_by(row.fallback_at, row.id)
        .limit(limit)
    )
    return list(session.scalars(for_update(session, query, skip_locked=True)))


# --- Sending --------------------------------------------------------------------------------------


def sendable(
    session: Any,
    capacity: Mapping[PoolRef, int],
    limit: int,
    *,
    shares: FairShares | None = None,
    limits: Limits = NO_LIMITS,
    at: datetime | None = None,
) -> list[WorkItemRow]:
    """Return placed rows that may be sent now, locked, within each pool's capacity and the `limits`.

    In a pool the teams take turns by their `shares`; a team's rows stand by priority and then age. The pools take turns as well.
    `at` saves another query of the database's clock.
    """
    now = at or clock.now(session)
    free = {ref: min(each, limit) for ref, each in capacity.items() if each > 0}
    room = limits.room(session, now) if free else None
    loads: fair_shares.Loads = {}
    if shares is not None:
        if limited := shares.limited(free):
            fair_shares.lock_quotas(session, limited)
        loads = fair_shares.loads(session, free)
    by_pool = []
    for ref, wanted in free.items():
        waiting = [team for team, load in loads.get(ref, {}).items() if load.waiting]
        if shares is None or not shares.applies(ref, waiting):
            waits = _waiting(session, ref, now, wanted, room=room)
            by_pool.append(waits[:wanted] if room is None else room.first(ref, waits, wanted))
        else:
            of_team = {team: _waiting(session, ref, now, wanted, team=team, room=room) for team in waiting}
            admits = partial(room.admits, ref) if room is not None else None
            by_pool.append(shares.in_turn(ref, of_team, loads[ref], wanted, admits))
    in_turns = [row for turn in zip_longest(*by_pool) for row in turn if row is not None]
    return in_turns[:limit]


def _waiting(
    session: Any,
    ref: PoolRef,
    now: datetime,
    limit: int,
    *,
    team: str | None = None,
    room: Room | None = None,
) -> list[WorkItemRow]:
    """Return placed rows of a pool, or of one team there, locked, by priority and then age.

    With `room`, up to `limit` of each class of limits, so that rows which a limit holds back do not stand before others.
    """
    of_team = () if team is None else (WorkItemRow.team == team,)
    if room is None or not room.concerns(ref):
        return _in_order(session, ref, now, limit, *of_team)
    rows: list[WorkItemRow] = []
    for names, most in room.classes(ref):
        of_class = WorkItemRow.limits.is_(None) if names is None else WorkItemRow.limits == names
        some = limit if most is None else min(limit, most)
        rows += _in_order(session, ref, now, some, of_class, *of_team)
    return sorted(rows, key=lambda row: (-row.priority, row.placed_at, row.id))


def _in_order(session: Any, ref: PoolRef, now: datetime, limit: int, *conditions: Any) -> list[WorkItemRow]:
    query = _locking.IN_ORDER.where(*conditions) if conditions else _locking.IN_ORDER
    values = {"region": ref[0], "pool": ref[1], "at": now, "most": limit}
    return list(session.scalars(locked(session, query), values))


def sendable_triggers(
    session: Any, region: str, pools: Collection[str], limit: int, *, at: datetime
) -> list[WorkItemRow]:
    """Return placed triggers of a region that may be sent now, locked. They take no slot, so a pool's capacity is not their bound."""
    row = WorkItemRow
    query = (
        select(row)
        .where(
            row.state == ItemState.PLACED,
            row.region == region,
            row.pool.in_(sorted(pools)),
            row.not_before <= at,
            row.kind == ItemKind.TRIGGER,
        )
        .order_by(row.priority.desc(), row.placed_at, row.id)
        .limit(limit)
    )
    return list(session.scalars(for_update(session, query, skip_locked=True)))


def reserve(session: Any, ids: Collection[str], until: datetime) -> None:
    """Count placed rows as sent, before the queue is called: a crash in between resends them after `until`."""
    if not ids:
        return
    write(session, _locking.RESERVE, ids, until=until)


def mark_sent(
    session: Any,
    ids: Collection[str],
    expires_at: datetime,
    *,
    at: datetime,
    reserved_until: datetime,
) -> None:
    """Note that the queue took the messages, which are good until `expires_at`.

    Claimed rows stay as they are, and so do those that are no longer of the reservation: their message is stale, and not
    waited for.
    """
    if ids:
        write(session, _locking.MARK_SENT, ids, until=expires_at, at=at, reserved=reserved_until)


def postpone(
    session: Any,
    ids: Collection[str],
    not_before: datetime,
    detail: str,
    *,
    reserved_until: datetime | None = None,
) -> None:
    """Put unclaimed rows back to be sent, no earlier than `not_before`; with `reserved_until`, those still of that reservation."""
    if not ids:
        return
    if reserved_until is None:
        write(session, _locking.POSTPONE, ids, at=not_before, why=detail)
    else:
        write(session, _locking.POSTPONE_RESERVED, ids, at=not_before, why=detail, reserved=reserved_until)


def return_expired(session: Any, limit: int, *, region: str) -> int:
    """Put rows back whose message has expired unclaimed, so that a new one is sent; return how many."""
    now = clock.now(session)
    query = (
        select(WorkItemRow)
        .where(
            WorkItemRow.state == ItemState.SENT,
            WorkItemRow.region == region,
            WorkItemRow.expires_at <= now,
        )
        .order_by(WorkItemRow.id)
        .limit(limit)
    )
    rows = session.scalars(for_update(session, query, skip_locked=True)).all()
    for row in rows:
        to_placed(row, now)
        row.detail = "its message expired unclaimed"
    session.flush()
    return len(rows)


def sent_before(session: Any, region: str, pool: str, before: datetime) -> list[str]:
    """Return the ids of items of a pool whose message was sent before then and is unclaimed."""
    query = select(WorkItemRow.id).where(
        WorkItemRow.state == ItemState.SENT,
        WorkItemRow.region == region,
        WorkItemRow.pool == pool,
        WorkItemRow.sent_at < before,
    )
    return list(session.scalars(query))


# --- Reporting to the scheduler --------------------------------------------------------------------


def unacknowledged(session: Any, owner_job_id: int | None) -> list[WorkItemRow]:
    """Return settled rows whose outcome has not been reported to this scheduler yet, oldest first, without their big columns."""
    query = _locking.UNACKNOWLEDGED_UNOWNED if owner_job_id is None else _locking.UNACKNOWLEDGED
    return list(session.scalars(query, {"owner": owner_job_id}))


def owned(session: Any, owner_job_id: int | None) -> list[Any]:
    """Return the open rows of this scheduler and those it has yet to report, each as the columns that name its task's attempt."""
    query = select(
        WorkItemRow.dag_id,
        WorkItemRow.task_id,
        WorkItemRow.run_id,
        WorkItemRow.try_number,
        WorkItemRow.map_index,
    )
    is_open = WorkItemRow.state.in_((ItemState.PLACED, ItemState.SENT, ItemState.CLAIMED))
    to_report = and_(WorkItemRow.state == ItemState.SETTLED, WorkItemRow.acknowledged_at.is_(None))
    of_this = WorkItemRow.owner_job_id.is_not_distinct_from(owner_job_id)
    return list(session.execute(query.where(of_this, OF_TASK, or_(is_open, to_report))))


def acknowledge(session: Any, ids: Collection[str]) -> None:
    """Mark outcomes as reported to the scheduler."""
    if ids:
        write(session, _locking.ACKNOWLEDGE, ids, at=clock.now(session))


def purge(session: Any, before: datetime) -> int:
    """Delete rows settled before then, and their records, and keep what they used; return how many rows."""
    purged = 0
    while ids := _old(session, before):
        usage.keep(session, ids)
        for table, column in ((RecordRow, RecordRow.item_id), (WorkItemRow, WorkItemRow.id)):
            session.execute(delete(table).where(column.in_(ids)).execution_options(synchronize_session=False))
        purged += len(ids)
    return purged


def _old(session: Any, before: datetime) -> list[str]:
    """Return the ids of a batch of rows settled before then, locked: another scheduler may purge as well."""
    query = (
        select(WorkItemRow.id)
        .where(WorkItemRow.state == ItemState.SETTLED, WorkItemRow.settled_at < before)
        .order_by(WorkItemRow.id)
        .limit(PURGE_BATCH)
    )
    return list(session.scalars(for_update(session, query, skip_locked=True)))
