"""Usage: what work items took, by team, DAG, region and pool.

Slot-seconds are the ledger's own: an item's slots times the time from each grant to the report, the release or the fencing that ended
it. CPU time and peak memory are the workers' reports of the task's process.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.dialects import postgresql, sqlite

from airbridge.core.protocol import ItemKind
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import EventRow, ItemState, UsageRow, WorkItemRow

# The event that carries what a task's process used.
TASK_ENDED = "task.ended"
# Events with the size of what they moved: a task's log, code that its worker fetched, and XComs.
CODE_FETCHED = "bundle.fetched"
XCOM_WRITTEN = "xcom.written"
XCOM_READ = "xcom.read"


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose usage it is."""

    team: str
    dag_id: str
    region: str
    pool: str


@dataclass(frozen=True, slots=True)
class Amount:
    """Quantities used. `peak_memory_bytes` is the largest of any one task's process."""

    items: int = 0
    slot_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0
    xcom_bytes: int = 0
    log_bytes: int = 0
    code_bytes: int = 0

    @property
    def moved_bytes(self) -> int:
        """Bytes of everything that moved."""
        return self.xcom_bytes + self.log_bytes + self.code_bytes

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.items + other.items,
            self.slot_seconds + other.slot_seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_memory_bytes, other.peak_memory_bytes),
            self.xcom_bytes + other.xcom_bytes,
            self.log_bytes + other.log_bytes,
            self.code_bytes + other.code_bytes,
        )


def between(session: Any, since: datetime, until: datetime) -> dict[Subject, Amount]:
    """Return what items used that were settled from `since` to before `until`, and what those use that are claimed now.

    An item counts whole at the time it is settled. Of items that the retention has deleted, whole days (in UTC) are counted: a day
    counts in the period in which it ends, or that reaches to the present, so that adjoining periods count it once.
    """
    row = WorkItemRow
    settled = (row.state == ItemState.SETTLED, row.settled_at >= since, row.settled_at < until)
    found = _of_items(session, *settled)
    now = clock.now(session)
    if since <= now < until:
        _add(found, _running(session, now))
    first, after = (at.astimezone(UTC).date() for at in (since, until))
    _add(found, _kept(session, first, after if until <= now else after + timedelta(days=1)))
    return found


def _kept(session: Any, first: date, after: date) -> list[tuple[Subject, Amount]]:
    """Return what is kept of the days from `first` to before `after`."""
    row = UsageRow
    subject = (row.team, row.dag_id, row.region, row.pool)
    sums = (func.sum(row.items), func.sum(row.slot_seconds), func.sum(row.cpu_seconds))
    moved = (func.sum(row.xcom_bytes), func.sum(row.log_bytes), func.sum(row.code_bytes))
    query = (
        select(*subject, *sums, func.max(row.peak_memory_bytes), *moved)
        .where(row.day >= first, row.day < after)
        .group_by(*subject)
    )
    return [
        (
            Subject(*of),
            Amount(int(items), float(slots), float(cpu), int(peak), int(xcom), int(log), int(code)),
        )
        for *of, items, slots, cpu, peak, xcom, log, code in session.execute(query)
    ]


def _of_items(session: Any, *conditions: Any) -> dict[Subject, Amount]:
    """Return what the items that meet the conditions used."""
    row, event = WorkItemRow, EventRow
    subject = (row.team, row.dag_id, row.region, row.pool)
    # A trigger goes on with the work of the item that deferred, and takes no slot: what it moves counts, it does not.
    tasks = func.count(case((row.kind == ItemKind.TASK, row.id)))
    slots = select(*subject, tasks, func.sum(row.slot_seconds)).where(*conditions).group_by(*subject)
    of_edge = event.event.in_((TASK_ENDED, CODE_FETCHED)) & (event.source == "edge")
    of_control = event.event.in_((XCOM_WRITTEN, XCOM_READ)) & (event.source == "control")
    processes = (
        select(
            *subject,
            func.coalesce(func.sum(event.cpu_seconds), 0.0),
            func.coalesce(func.max(event.peak_memory_bytes), 0),
            *(_moved_by(*names) for names in ((XCOM_WRITTEN, XCOM_READ), (TASK_ENDED,), (CODE_FETCHED,))),
        )
        .join(event, event.item_id == row.id)
        .where(*conditions, of_edge | of_control)
        .group_by(*subject)
    )
    found = {Subject(*of): Amount(count, float(seconds)) for *of, count, seconds in session.execute(slots)}
    _add(
        found,
        [
            (Subject(*of), Amount(0, 0.0, float(cpu), int(peak), int(xcom), int(log), int(code)))
            for *of, cpu, peak, xcom, log, code in session.execute(processes)
        ],
    )
    return found


def _moved_by(*names: str) -> Any:
    """Return the SQL expression of the bytes that events of these names moved."""
    return func.coalesce(func.sum(case((EventRow.event.in_(names), EventRow.moved_bytes), else_=0)), 0)


def _running(session: Any, now: datetime) -> list[tuple[Subject, Amount]]:
    row = WorkItemRow
    query = select(
        row.team, row.dag_id, row.region, row.pool, row.slots, row.slot_seconds, row.claimed_at
    ).where(row.state == ItemState.CLAIMED, row.kind == ItemKind.TASK)
    return [
        (
            Subject(*of),
            Amount(1, float(used) + slots * max(0.0, (now - claimed_at).total_seconds())),
        )
        for *of, slots, used, claimed_at in session.execute(query)
    ]


def _add(found: dict[Subject, Amount], more: Iterable[tuple[Subject, Amount]]) -> None:
    for subject, amount in more:
        found[subject] = found.get(subject, Amount()) + amount


def keep(session: Any, ids: Collection[str]) -> None:
    """Keep what these settled items used, which the caller is about to delete."""
    row = WorkItemRow
    day_of = _utc_day(session, row.settled_at)
    for day in session.scalars(select(day_of).where(row.id.in_(ids)).distinct()).all():
        used = _of_items(session, row.id.in_(ids), day_of == day)
        _keep_day(session, date.fromisoformat(str(day)), used)


def _utc_day(session: Any, column: Any) -> Any:
    """Return the SQL expression of a time's day in UTC, whatever time zone the session has."""
    if session.get_bind().dialect.name == "postgresql":
        return func.date(func.timezone("UTC", column))
    return func.date(column)


_MOVED = ("xcom_bytes", "log_bytes", "code_bytes")


def _keep_day(session: Any, day: date, used: dict[Subject, Amount]) -> None:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    statement = dialect.insert(UsageRow.__table__)
    new = statement.excluded
    statement = statement.on_conflict_do_update(
        index_elements=["day", "team", "dag_id", "region", "pool"],
        set_={
            "items": UsageRow.items + new["items"],
            "slot_seconds": UsageRow.slot_seconds + new.slot_seconds,
            "cpu_seconds": UsageRow.cpu_seconds + new.cpu_seconds,
            **{name: getattr(UsageRow, name) + new[name] for name in _MOVED},
            "peak_memory_bytes": case(
                (new.peak_memory_bytes > UsageRow.peak_memory_bytes, new.peak_memory_bytes),
                else_=UsageRow.peak_memory_bytes,
            ),
        },
    )
    rows = [
        {
            "day": day,
            "team": subject.team,
            "dag_id": subject.dag_id,
            "region": subject.region,
            "pool": subject.pool,
            "items": amount.items,
            "slot_seconds": amount.slot_seconds,
            "cpu_seconds": amount.cpu_seconds,
            "peak_memory_bytes": amount.peak_memory_bytes,
            **{name: getattr(amount, name) for name in _MOVED},
        }
        for subject, amount in used.items()
    ]
    if rows:
        session.execute(statement, rows)
