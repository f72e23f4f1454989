"""A DAG run over regions: where each of its tasks ran, and what moved between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import select

from airbridge.core.protocol import ItemKind
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import EventRow, ItemState, Outcome, WorkItemRow
from airbridge.executor.ledger.sharing.usage import XCOM_READ, XCOM_WRITTEN

# Work items and events of XComs that are read; of a larger run the newest.
MAX_ITEMS: Final = 5_000
MAX_MOVES: Final = 10_000

_BAD: Final = frozenset({Outcome.FAILED, Outcome.LOST, Outcome.UNPLACEABLE})


@dataclass(frozen=True, slots=True)
class Attempt:
    """One work item of a task. Times are by the database's clock."""

    id: str
    task_id: str
    map_index: int
    try_number: int
    region: str
    pool: str
    worker_id: str | None
    state: ItemState
    outcome: str | None
    #: State that the task reported, or the reason of its end.
    detail: str | None
    placed_at: datetime
    claimed_at: datetime | None
    settled_at: datetime | None
    #: Reason of the placement.
    why: str

    @property
    def name(self) -> str:
        """Task id, with the map index of a mapped task."""
        return self.task_id if self.map_index < 0 else f"{self.task_id} [{self.map_index}]"

    @property
    def trouble(self) -> bool:
        """True if it failed, was lost or could not be placed."""
        return self.outcome in _BAD

    def ran(self, now: datetime) -> float:
        """Return the seconds for which a worker has held it."""
        if self.claimed_at is None:
            return 0.0
        return max(0.0, ((self.settled_at or now) - self.claimed_at).total_seconds())


@dataclass(frozen=True, slots=True)
class Move:
    """XComs of one key that one task read of another."""

    #: Name of the task that wrote, with its DAG and run if these are others.
    source: str
    #: Region that the value came from; None if nothing of the ledger has it any more.
    source_region: str | None
    #: The writer's work item, if it is of this run.
    source_item: str | None
    reader: str
    reader_region: str
    reader_item: str
    key: str
    bytes: int
    #: Region in whose bucket the value lies; None if it is in the database.
    stored: str | None
    at: datetime

    @property
    def crosses(self) -> bool:
        """True if the value moved from one region to another."""
        return self.source_region is not None and self.source_region != self.reader_region


@dataclass(frozen=True, slots=True)
class RunTask:
    """Task of the run, with its attempts, oldest first; the last one is current."""

    attempts: tuple[Attempt, ...]
    #: Bytes of the XComs that it wrote, and of those that it read.
    written: int
    read: int

    @property
    def last(self) -> Attempt:
        """Current attempt."""
        return self.attempts[-1]


@dataclass(frozen=True, slots=True)
class RunRegion:
    """Part of a run in one region. Bytes are of XComs that other regions read of it, and that it read of others."""

    name: str
    tasks: int
    waiting: int
    run_seconds: float
    sent: int
    received: int


@dataclass(frozen=True, slots=True)
class Run:
    """DAG run. Tasks are in the order in which they were placed, then of their names; regions in that of their first task."""

    dag_id: str
    run_id: str
    tasks: tuple[RunTask, ...]
    regions: tuple[RunRegion, ...]
    #: Largest first.
    moves: tuple[Move, ...]
    start: datetime
    #: None while any task has not ended.
    end: datetime | None
    now: datetime
    #: False if there is more of it than is read.
    complete: bool

    @property
    def run_seconds(self) -> float:
        """Time that workers held its tasks, added."""
        return sum(region.run_seconds for region in self.regions)

    @property
    def crossed(self) -> int:
        """Bytes of XComs that moved between regions."""
        return sum(move.bytes for move in self.moves if move.crosses)


def find(session: Any, dag_id: str, run_id: str) -> Run | None:
    """Return a run; None if the ledger has nothing of it."""
    attempts = _attempts(session, dag_id, run_id)
    if not attempts:
        return None
    now = clock.now(session)
    events = _events(session, dag_id, run_id)
    moves = sorted(_moves(events, attempts, (dag_id, run_id)), key=lambda move: (-move.bytes, move.at))
    ends = [each.settled_at for each in attempts]
    settled = [at for at in ends if at is not None]
    return Run(
        dag_id=dag_id,
        run_id=run_id,
        tasks=tuple(_tasks(attempts, events)),
        regions=tuple(_regions(attempts, moves, now)),
        moves=tuple(moves),
        start=min(each.placed_at for each in attempts),
        end=max(settled) if len(settled) == len(ends) else None,
        now=now,
        complete=len(attempts) < MAX_ITEMS and len(events) < MAX_MOVES,
    )


def _attempts(session: Any, dag_id: str, run_id: str) -> list[Attempt]:
    row = WorkItemRow
    columns = (row.id, row.task_id, row.map_index, row.try_number, row.region, row.pool, row.worker_id)
    times = (row.state, row.outcome, row.detail, row.placed_at, row.claimed_at, row.settled_at, row.placement)
    query = (
        select(*columns, *times)
        .where(row.dag_id == dag_id, row.run_id == run_id, row.kind == ItemKind.TASK)
        .order_by(row.placed_at.desc(), row.task_id.desc(), row.map_index.desc(), row.try_number.desc())
        .limit(MAX_ITEMS)
    )
    found = [
        Attempt(
            id=values.id,
            task_id=values.task_id,
            map_index=values.map_index,
            try_number=values.try_number,
            region=values.region,
            pool=values.pool,
            worker_id=values.worker_id,
            state=ItemState(values.state),
            outcome=values.outcome,
            detail=values.detail,
            placed_at=values.placed_at,
            claimed_at=values.claimed_at,
            settled_at=values.settled_at,
            why=str((values.placement or {}).get("why") or ""),
        )
        for values in session.execute(query)
    ]
    return found[::-1]


def _events(session: Any, dag_id: str, run_id: str) -> list[Any]:
    row, item = EventRow, WorkItemRow
    query = (
        select(row.item_id, row.event, row.at, row.detail)
        .join(item, item.id == row.item_id)
        .where(
            item.dag_id == dag_id,
            item.run_id == run_id,
            row.event.in_((XCOM_WRITTEN, XCOM_READ)),
            row.source == "control",
        )
        .order_by(row.id.desc())
        .limit(MAX_MOVES)
    )
    return list(session.execute(query))


def _tasks(attempts: Sequence[Attempt], events: Sequence[Any]) -> Iterator[RunTask]:
    moved: defaultdict[tuple[str, str], int] = defaultdict(int)
    for each in events:
        moved[each.item_id, each.event] += int(each.detail.get("bytes") or 0)
    of_task: defaultdict[tuple[str, int], list[Attempt]] = defaultdict(list)
    for attempt in attempts:
        of_task[attempt.task_id, attempt.map_index].append(attempt)
    for mine in of_task.values():
        written, read = (sum(moved[each.id, name] for each in mine) for name in (XCOM_WRITTEN, XCOM_READ))
        yield RunTask(tuple(mine), written, read)


@dataclass(frozen=True, slots=True)
class _Written:
    """XCom of the run: its writer's attempt, its bytes, and whether it lies in a bucket, from which it is fetched by itself."""

    attempt: Attempt
    bytes: int
    stored: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of a read: XComs of one region."""

    name: str
    writer: Attempt | None
    bytes: int


class _Writers:
    """Writers of a run's XComs."""

    def __init__(self, events: Sequence[Any], attempts: Sequence[Attempt]) -> None:
        items = {each.id: each for each in attempts}
        self._last = {(each.task_id, each.map_index): each for each in attempts}
        # Of a task that was tried in several regions, the attempt whose value it is.
        self._wrote: dict[tuple[str, str], dict[int, _Written]] = defaultdict(dict)
        for each in events:
            if each.event == XCOM_WRITTEN and (item := items.get(each.item_id)) is not None:
                written = _Written(item, int(each.detail.get("bytes") or 0), "stored" in each.detail)
                of_key = self._wrote[item.task_id, str(each.detail.get("key"))]
                of_key.setdefault(item.map_index, written)

    def parts(self, detail: Mapping[str, Any]) -> Iterator[_Part]:
        """Yield the parts of a read of this run: one, or of a slice one for each region."""
        task, key = str(detail.get("of_task") or ""), str(detail.get("key") or "")
        size = int(detail.get("bytes") or 0)
        wrote = self._wrote.get((task, key), {})
        indexes = sorted(wrote)
        if "of_slice" in detail:
            yield from self._slice(
                task, size, [wrote[index] for index in _sliced(indexes, detail["of_slice"])]
            )
            return
        index = _index(detail, indexes)
        written = wrote.get(index)
        writer = written.attempt if written else self._last.get((task, index))
        yield _Part(_name(task, index), writer, size)

    def _slice(self, task: str, size: int, read: Sequence[_Written]) -> Iterator[_Part]:
        """Yield the read of many XComs by region. Those that lie in a bucket are fetched one by one, by reads of their own."""
        by_region: defaultdict[str, list[_Written]] = defaultdict(list)
        for each in read:
            if not each.stored:
                by_region[each.attempt.region].append(each)
        if not read:
            yield _Part(task, None, size)
        for mine in by_region.values():
            first = mine[0].attempt
            yield _Part(first.name if len(mine) == 1 else task, first, sum(each.bytes for each in mine))


def _sliced(indexes: list[int], bounds: Sequence[int | None]) -> list[int]:
    start, stop, step = bounds
    return indexes[slice(start, stop, step or None)]


def _index(detail: Mapping[str, Any], indexes: Sequence[int]) -> int:
    """Return the map index that a read is of; it may be given as a position among those that there are."""
    position = detail.get("of_position")
    if position is None:
        return int(detail.get("of_index", -1))
    return indexes[position] if -len(indexes) <= position < len(indexes) else -1


def _name(task: str, index: int) -> str:
    return task if index < 0 else f"{task} [{index}]"


def _moves(events: Sequence[Any], attempts: Sequence[Attempt], run: tuple[str, str]) -> Iterator[Move]:
    items = {each.id: each for each in attempts}
    writers = _Writers(events, attempts)
    for each in events:
        reader = items.get(each.item_id)
        if each.event != XCOM_READ or reader is None:
            continue
        detail: Mapping[str, Any] = each.detail
        of_run = (detail.get("of_dag"), detail.get("of_run"))
        if of_run == run:
            parts = [*writers.parts(detail)]
        else:
            name = _name(str(detail.get("of_task") or ""), _index(detail, ()))
            source = " / ".join(str(part) for part in (*of_run, name) if part)
            parts = [_Part(source, None, int(detail.get("bytes") or 0))]
        stored = detail.get("stored")
        for part in parts:
            yield Move(
                source=part.name,
                source_region=part.writer.region if part.writer else stored,
                source_item=part.writer.id if part.writer else None,
                reader=reader.name,
                reader_region=reader.region,
                reader_item=reader.id,
                key=str(detail.get("key") or ""),
                bytes=part.bytes,
                stored=stored,
                at=each.at,
            )


def _regions(attempts: Sequence[Attempt], moves: Sequence[Move], now: datetime) -> Iterator[RunRegion]:
    crossing = [move for move in moves if move.crosses]
    for name in dict.fromkeys(each.region for each in attempts):
        mine = [each for each in attempts if each.region == name]
        yield RunRegion(
            name=name,
            tasks=len({(each.task_id, each.map_index) for each in mine}),
            waiting=sum(each.state in {ItemState.PLACED, ItemState.SENT} for each in mine),
            run_seconds=sum(each.ran(now) for each in mine),
            sent=sum(move.bytes for move in crossing if move.source_region == name),
            received=sum(move.bytes for move in crossing if move.reader_region == name),
        )
