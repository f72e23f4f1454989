"""Limits: at most so many tasks at one time, or starts a minute, of those that name a limit or run in one of its pools.

A claim decides. It locks the limit's row, counts what runs, and commits both with the grant, so that no two gateways grant the same
place. The outbox reads the same figures without a lock, and sends no more than may soon start; what a claim finds too much goes back
to the outbox.

A message that waits on the queue of a pool for longer than `PATIENCE` keeps no work of other pools back: a pool without workers must
not hold all places of a limit.

Triggers of deferred tasks count towards no limit: they wait for hours, and a pool's limit is of the tasks that work there.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from airbridge.core.protocol import ItemKind
from airbridge.core.regions import Limit
from airbridge.executor.ledger import clock
from airbridge.executor.ledger._locking import for_update
from airbridge.executor.ledger.backlogs import PoolRef
from airbridge.executor.ledger.models import ItemState, LimitRow, LimitStartRow, WorkItemRow

MINUTE: Final = timedelta(minutes=1)
# Time after which a message that nobody has claimed keeps back the work of its own pool alone.
PATIENCE: Final = timedelta(seconds=5)


def names_of(limits: str | None) -> tuple[str, ...]:
    """Return the names in a row's `limits`."""
    return tuple(limits.split()) if limits else ()


@dataclass(frozen=True, slots=True)
class LimitLoad:
    """Tasks under one limit: those that run, those that wait, and those started within the last minute."""

    limit: Limit
    running: int = 0
    waiting: int = 0
    starts: int = 0

    @property
    def full(self) -> str:
        """Which part of the limit is reached, in words; empty if a task may start."""
        limit = self.limit
        if limit.max_running is not None and self.running >= limit.max_running:
            return f"limit {limit.name}: {self.running} of {limit.max_running} tasks run"
        if limit.starts_per_minute is not None and self.starts >= limit.starts_per_minute:
            return f"limit {limit.name}: {self.starts} of {limit.starts_per_minute} starts within a minute"
        return ""


@dataclass(slots=True)
class _Counts:
    """Tasks under one limit, counted on while a transaction grants or sends more."""

    running: int = 0
    waiting: int = 0
    # Messages that keep back the work of every pool, and those that keep back that of their own.
    fresh: int = 0
    stale: Counter[PoolRef] = field(default_factory=Counter)
    starts: list[datetime] = field(default_factory=list)

    def room(self, limit: Limit, ref: PoolRef) -> int:
        """Return how many more items of a pool may be sent."""
        ahead = self.fresh + self.stale[ref]
        rooms = []
        if limit.max_running is not None:
            rooms.append(limit.max_running - self.running - ahead)
        if limit.starts_per_minute is not None:
            rooms.append(limit.starts_per_minute - len(self.starts) - ahead)
        return max(0, min(rooms))

    def holds_back(self, limit: Limit, ref: PoolRef) -> bool:
        """Return whether a pool's items wait for others of the limit: it is in use, and has no room for all that wait to be sent."""
        placed = self.waiting - self.fresh - self.stale.total()
        in_use = self.running or self.fresh or self.starts
        return bool(in_use) and placed > self.room(limit, ref)


class Limits:
    """The catalogue's limits."""

    def __init__(self, limits: Iterable[Limit] = ()) -> None:
        self._limits = {limit.name: limit for limit in limits}
        self._places: frozenset[PoolRef] = frozenset().union(
            *(limit.places for limit in self._limits.values())
        )

    @property
    def places(self) -> frozenset[PoolRef]:
        """Pools whose tasks all count towards a limit."""
        return self._places

    def __bool__(self) -> bool:
        return bool(self._limits)

    def of(self, limits: str | None, ref: PoolRef) -> list[Limit]:
        """Return the limits that a row with these names counts towards in this pool, in the order of their names."""
        named = names_of(limits)
        return [
            self._limits[name]
            for name in sorted(self._limits)
            if name in named or ref in self._limits[name].places
        ]

    def of_row(self, row: WorkItemRow) -> list[Limit]:
        """Return the limits that a row counts towards; those of a trigger are none."""
        return [] if row.kind == ItemKind.TRIGGER else self.of(row.limits, (row.region, row.pool))

    def loads(self, session: Any, now: datetime) -> tuple[LimitLoad, ...]:
        """Return the load of every limit."""
        if not self._limits:
            return ()
        counts = self._counts(
            session, self._limits, now, (ItemState.PLACED, ItemState.SENT, ItemState.CLAIMED)
        )
        return tuple(
            LimitLoad(limit, counts[name].running, counts[name].waiting, len(counts[name].starts))
            for name, limit in self._limits.items()
        )

    def room(self, session: Any, now: datetime) -> Room | None:
        """Return what may still be sent; None without limits."""
        if not self._limits:
            return None
        states = (ItemState.PLACED, ItemState.SENT, ItemState.CLAIMED)
        return Room(self, self._counts(session, self._limits, now, states), _classes(session))

    def admission(self, session: Any, rows: Collection[WorkItemRow], now: datetime) -> Admission:
        """Lock the limits of these rows until the transaction ends, and return the judge of their starts."""
        names = sorted({limit.name for row in rows for limit in self.of_row(row)})
        if not names:
            return Admission(self, session, {}, now)
        _lock(session, names)
        # The lock may have been waited for: what starts now has started after what its last holder let start.
        now = clock.now(session)
        session.execute(
            delete(LimitStartRow)
            .where(LimitStartRow.name.in_(names), LimitStartRow.started_at <= now - MINUTE)
            .execution_options(synchronize_session=False)
        )
        return Admission(self, session, self._counts(session, names, now, (ItemState.CLAIMED,)), now)

    # --- counting -----------------------------------------------------------------------------------

    def _counts(
        self, session: Any, names: Collection[str], now: datetime, states: Sequence[ItemState]
    ) -> dict[str, _Counts]:
        found: dict[str, _Counts] = {name: _Counts() for name in names}
        for limits, ref, state, is_fresh, count in self._items(session, now, states):
            for limit in self.of(limits, ref):
                if limit.name in found:
                    _add(found[limit.name], state, ref, count, is_fresh=is_fresh)
        rated = [name for name in names if self._limits[name].starts_per_minute is not None]
        if rated:
            row = LimitStartRow
            recent = select(row.name, row.started_at).where(
                row.name.in_(rated), row.started_at > now - MINUTE
            )
            for name, at in session.execute(recent.order_by(row.started_at)):
                found[name].starts.append(at)
        return found

    def _items(
        self, session: Any, now: datetime, states: Sequence[ItemState]
    ) -> Iterator[tuple[str | None, PoolRef, str, bool, int]]:
        row = WorkItemRow
        counted = [row.limits.isnot(None)]
        counted += [and_(row.region == region, row.pool == pool) for region, pool in sorted(self._places)]
        # One that is being sent has no `sent_at` yet.
        is_fresh = func.coalesce(row.sent_at > now - PATIENCE, row.state == ItemState.SENT).label("is_fresh")
        groups: tuple[Any, ...] = (row.limits, row.region, row.pool, row.state)
        query = (
            select(*groups, is_fresh, func.count())
            .where(row.state.in_(states), row.kind == ItemKind.TASK, or_(*counted))
            .group_by(*groups, "is_fresh")
        )
        for limits, region, pool, state, fresh, count in session.execute(query):
            yield limits, (region, pool), state, bool(fresh), count


def _add(counts: _Counts, state: str, ref: PoolRef, count: int, *, is_fresh: bool) -> None:
    if state == ItemState.CLAIMED:
        counts.running += count
        return
    counts.waiting += count
    if state == ItemState.SENT and is_fresh:
        counts.fresh += count
    elif state == ItemState.SENT:
        counts.stale[ref] += count


def _classes(session: Any) -> dict[PoolRef, list[str | None]]:
    """Return the different `limits` of the rows that wait in each pool that has rows with any; None is none."""
    row = WorkItemRow
    query = (
        select(row.region, row.pool, row.limits)
        .where(row.state == ItemState.PLACED, row.limits.isnot(None))
        .group_by(row.region, row.pool, row.limits)
    )
    found: defaultdict[PoolRef, list[str | None]] = defaultdict(lambda: [None])
    for region, pool, limits in session.execute(query.order_by(row.limits)):
        found[region, pool].append(limits)
    return dict(found)


def _lock(session: Any, names: Sequence[str]) -> None:
    """Lock the limits' rows, in the order of their names so that no two transactions wait for each other."""
    query = select(LimitRow.name).where(LimitRow.name.in_(names)).order_by(LimitRow.name)
    if len(session.scalars(for_update(session, query)).all()) == len(names):
        return
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    for name in names:
        session.execute(dialect.insert(LimitRow.__table__).values(name=name).on_conflict_do_nothing())
    session.scalars(for_update(session, query)).all()


class Room:
    """What the outbox may send in one turn under the limits."""

    def __init__(
        self, limits: Limits, counts: Mapping[str, _Counts], classes: Mapping[PoolRef, Sequence[str | None]]
    ) -> None:
        self._limits = limits
        self._counts = counts
        self._classes = classes

    def classes(self, ref: PoolRef) -> Iterator[tuple[str | None, int | None]]:
        """Yield the different `limits` of the rows that wait in a pool, each with how many may be sent; None is any number.

        A class that may send nothing is left out, so that its rows do not stand before others.
        """
        for limits in self._classes.get(ref, [None]):
            rooms = [self._counts[limit.name].room(limit, ref) for limit in self._limits.of(limits, ref)]
            if not rooms:
                yield limits, None
            elif min(rooms) > 0:
                yield limits, min(rooms)

    def held_back(self) -> Iterator[tuple[PoolRef, str | None]]:
        """Yield the pools, and the different `limits` of the rows in each, that a limit holds back."""
        for ref in sorted({*self._classes, *self._limits.places}):
            for limits in self._classes.get(ref, [None]):
                of_class = self._limits.of(limits, ref)
                if any(self._counts[limit.name].holds_back(limit, ref) for limit in of_class):
                    yield ref, limits

    def concerns(self, ref: PoolRef) -> bool:
        """Return whether a limit counts anything that waits in this pool."""
        return ref in self._classes or bool(self._limits.of(None, ref))

    def first(self, ref: PoolRef, rows: Iterable[WorkItemRow], wanted: int) -> list[WorkItemRow]:
        """Return the first `wanted` of a pool's rows that may be sent; these alone count."""
        return list(islice((row for row in rows if self.admits(ref, row)), wanted))

    def admits(self, ref: PoolRef, row: WorkItemRow) -> bool:
        """Return whether a row may be sent, and count it if so."""
        limits = self._limits.of(row.limits, ref)
        if any(self._counts[limit.name].room(limit, ref) < 1 for limit in limits):
            return False
        for limit in limits:
            self._counts[limit.name].fresh += 1
        return True


class Admission:
    """Judge of the starts of one transaction, which holds the locks of their limits."""

    def __init__(self, limits: Limits, session: Any, counts: Mapping[str, _Counts], now: datetime) -> None:
        self._limits = limits
        self._session = session
        self._counts = counts
        self._now = now

    def held_back(self, row: WorkItemRow) -> tuple[str, datetime] | None:
        """Return why a row may not start, and when it may be tried again; None if it may."""
        for limit in self._limits.of_row(row):
            counts = self._counts[limit.name]
            load = LimitLoad(limit, counts.running, 0, len(counts.starts))
            if load.full:
                rated = limit.max_running is None or counts.running < limit.max_running
                oldest = counts.starts[-(limit.starts_per_minute or 0)] if rated else None
                return load.full, self._now if oldest is None else oldest + MINUTE
        return None

    def started(self, row: WorkItemRow) -> None:
        """Count a row that has been granted."""
        for limit in self._limits.of_row(row):
            counts = self._counts[limit.name]
            counts.running += 1
            if limit.starts_per_minute is not None:
                counts.starts.append(self._now)
                self._session.add(LimitStartRow(name=limit.name, started_at=self._now))
