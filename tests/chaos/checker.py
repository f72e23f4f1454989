"""Checks a history against the platform's promises, without knowledge of the implementation.

Each task instance has one committed outcome, and it is the outcome that its code produced, or an honest failure: the
attempt was fenced after its `lost_after`, or its worker was killed before the result was in the journal. No result is
lost, none is doubled, nothing is stuck, and Airflow's tables, the ledger and the workers agree.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from tests.chaos import regional_checks
from tests.chaos.history import Death, Effect, History, Item, Task, TaskKey
from tests.chaos.schedule import (
    CALLS,
    CHAIN,
    HASTY,
    LENGTH,
    MAPPED,
    MIXED,
    STORED,
    WAITERS,
    WAITING,
    WIDE,
    WIDTH,
)
from tests.chaos.violations import Kind, Violation, name_of, value_of

FINISHED = frozenset({"success", "failed", "skipped"})
FINAL_COMMITS = frozenset({"success", "skipped"})
RETRIED = frozenset({"up_for_retry", "failed"})
DISOWNED = "has no record of it"
CLOCK_SLACK_SECONDS = 0.05
"""Between Postgres' clock and the host's: they are one, but for rounding and the time of a statement."""


@dataclass(frozen=True)
class Phase:
    """One execution of a task instance's code."""

    start: Effect
    end: Effect | None

    @property
    def outcome(self) -> str | None:
        """Outcome that the code produced; None if it did not end."""
        return self.end.outcome if self.end else None

    @property
    def broke(self) -> bool:
        """True if it ended with an error that its plan does not contain."""
        return bool(self.outcome and self.outcome.startswith("error"))


def check(history: History) -> list[Violation]:
    """Return the violations in a history; empty if it is as promised."""
    return [*_Check(history).violations()]


def expected_keys(dag_id: str, run_id: str) -> list[TaskKey]:
    """Return the task instances of a run."""
    names = {
        WIDE: [f"t{number}" for number in range(WIDTH)],
        HASTY: [f"t{number}" for number in range(WIDTH)],
        CHAIN: [f"c{number}" for number in range(LENGTH)],
        WAITING: [f"w{number}" for number in range(WAITERS)],
        STORED: ["store", "load"],
        MIXED: ["rescheduled", "deferred", "first", "last", *(f"calls_{n}" for n in range(CALLS))],
    }.get(dag_id, ["called"])
    keys = [(dag_id, run_id, name, -1) for name in names]
    if dag_id == MIXED:
        keys += [(dag_id, run_id, "mapped", index) for index in range(MAPPED)]
    return keys


class _Check:
    def __init__(self, history: History) -> None:
        self.history = history

    def violations(self) -> Iterator[Violation]:
        for (dag_id, run_id), state in self.history.runs.items():
            if state not in FINISHED:
                yield Violation(Kind.STUCK, f"{dag_id} {run_id}", f"the run is {state}")
            for key in expected_keys(dag_id, run_id):
                yield from self._task(key)
        for item in self.history.items:
            yield from self._item(item)
        yield from self._runs_under_one_grant()
        yield from self._overlaps()
        yield from self._reports()
        yield from regional_checks.triggers(self.history)
        yield from regional_checks.stored(self.history)
        for worker, code in self.history.ended.items():
            yield Violation(Kind.STUCK, worker, f"it ended by itself, with exit code {code}")
        for worker, left in self.history.journals.items():
            if left:
                yield Violation(Kind.STUCK, worker, f"{left} records are still in its journal")

    # --- one task -----------------------------------------------------------------------------------

    def _task(self, key: TaskKey) -> Iterator[Violation]:
        where, wanted = name_of(key), self._wanted(key)
        task = self._tasks.get(key)
        items = self._items_of(key)
        if task is None:
            yield Violation(Kind.STUCK, where, "Airflow has no such task instance")
            return
        if task.state not in FINISHED:
            yield Violation(Kind.STUCK, where, f"Airflow has it as {task.state}")
            return
        if task.state != wanted:
            yield Violation(Kind.LOST, where, f"it ended as {task.state}; its code was to make it {wanted}")
        commits = [item for item in items if item.detail in FINAL_COMMITS and _committed(item)]
        if len(commits) > 1:
            yield Violation(Kind.DOUBLED, where, f"{len(commits)} final outcomes were committed")
        if not items:
            yield Violation(Kind.INVENTED, where, f"{task.state}, and never queued")
            return
        last = items[-1]
        if last.ti_id != task.ti_id or _committed(last) != task.state:
            yield Violation(
                Kind.DISAGREE,
                where,
                f"Airflow: {task.state} ({task.ti_id}); ledger: {last.outcome} {last.detail} ({last.ti_id})",
            )
        elif task.state == "success":
            yield from self._results(key, task)
        yield from self._foreign_xcoms(key, task)

    def _results(self, key: TaskKey, task: Task) -> Iterator[Violation]:
        where = name_of(key)
        returned = self._returned(key)
        if key[2] == "store":
            found = self.history.xcoms.get((key, "return_value"))
            if not regional_checks.is_stored(found, key):
                yield Violation(Kind.LOST, where, f"its XCom is no reference to what it returned: {found!r}")
        elif returned is not None and self.history.xcoms.get((key, "return_value")) != returned:
            found = self.history.xcoms.get((key, "return_value"))
            yield Violation(Kind.LOST, where, f"it returned {returned[:12]}...; its XCom is {found!r}")
        plan = self._plan(key)
        if plan.get("does") == "push":
            missing = [n for n in range(plan["pushes"]) if (key, f"many_{n}") not in self.history.xcoms]
            if missing:
                yield Violation(Kind.LOST, where, f"XComs many_{missing} are not there")
        if plan.get("does") == "variable":
            found = self.history.variables.get(f"{key[1]}--{key[2]}")
            if found != f"by try {task.try_number}":
                yield Violation(
                    Kind.FENCE, where, f"committed try {task.try_number}; its variable says {found!r}"
                )
        if key[2].startswith("calls_"):
            called = f"{key[1]}-{key[2]}-{task.try_number}"
            if not any(run_id == called for _, run_id in self.history.runs):
                yield Violation(Kind.LOST, where, f"the run {called} that it started is not there")

    def _foreign_xcoms(self, key: TaskKey, task: Task) -> Iterator[Violation]:
        for (owner, name), value in self.history.xcoms.items():
            # Airflow 3.0.4 does not clear a mapped task's XComs when it is tried again: what is left proves nothing.
            if owner == key and key[3] < 0 and name.startswith("by_try_"):
                attempt = int(name.removeprefix("by_try_"))
                if attempt != task.try_number or value != task.ti_id:
                    yield Violation(
                        Kind.FENCE,
                        name_of(key),
                        f"try {task.try_number} is the last; an XCom of try {attempt} is there",
                    )

    # --- one queueing of a task -----------------------------------------------------------------------

    def _item(self, item: Item) -> Iterator[Violation]:
        where = f"{name_of(item.key)} try {item.try_number} (item {item.id}, {item.worker})"
        if item.state != "settled":
            yield Violation(Kind.STUCK, where, f"its work item is {item.state}")
            return
        settled = self.history.settlements.get(item.id, 0)
        if settled != 1:
            kind = Kind.DOUBLED if settled else Kind.DISAGREE
            yield Violation(kind, where, f"{settled} events say that it was settled")
        phase = self._phase(item)
        if item.outcome == "lost":
            yield from self._given_up(item, where)
        elif self._expected_end(item):
            return
        elif _committed(item) is None:
            yield Violation(Kind.DISHONEST, where, f"settled as {item.outcome}: {item.detail}")
        elif phase is not None and phase.outcome == item.detail:
            yield from self._log(item, phase, where)
        else:
            yield from self._not_as_code_made_it(item, phase, where)
        if phase is not None and phase.broke and item.outcome != "lost" and not self._died(item):
            yield Violation(Kind.ERROR, where, str(phase.outcome))

    def _expected_end(self, item: Item) -> bool:
        """Return whether an attempt ended as it had to, whatever its code made it: its task was cleared, or its bucket out of reach."""
        cleared = item.outcome == "cancelled" and item.key in self.history.cleared
        return cleared or regional_checks.excused(self.history, item)

    def _given_up(self, item: Item, where: str) -> Iterator[Violation]:
        if DISOWNED in item.detail:
            yield from self._disowned(item, where)
            return
        silent = (item.settled_at or 0) - (item.renewed_at or 0)
        if silent < item.lost_after - CLOCK_SLACK_SECONDS:
            yield Violation(
                Kind.DISHONEST,
                where,
                f"given up after {silent:.2f} s of silence; lost_after is {item.lost_after:g} s",
            )

    def _disowned(self, item: Item, where: str) -> Iterator[Violation]:
        """Check an item that its worker disowned: allowed only if it was killed before the grant was in its journal."""
        deaths = self._died(item)
        if not deaths:
            yield Violation(Kind.DISHONEST, where, "its worker disowned it, and was not killed")
        elif any(item.id in death.held for death in deaths):
            yield Violation(Kind.LOST, where, "its grant was in its worker's journal, and is forgotten")

    def _not_as_code_made_it(self, item: Item, phase: Phase | None, where: str) -> Iterator[Violation]:
        made = phase.outcome if phase else None
        if item.detail in RETRIED:
            deaths = self._died(item)
            if not deaths and made is not None and not (phase and phase.broke):
                yield Violation(Kind.LOST, where, f"its code made it {made}; {item.detail} was committed")
            elif not deaths and made is None:
                yield Violation(Kind.DISHONEST, where, f"{item.detail}, its worker was not killed")
            elif any(item.id in death.journalled for death in deaths):
                yield Violation(
                    Kind.LOST, where, f"its result ({made}) was in the journal; {item.detail} was committed"
                )
        elif made is None or (phase and phase.broke):
            yield Violation(Kind.INVENTED, where, f"{item.detail} was committed; its code made it {made}")
        else:
            yield Violation(Kind.LOST, where, f"its code made it {made}; {item.detail} was committed")

    def _log(self, item: Item, phase: Phase, where: str) -> Iterator[Violation]:
        line = f"chaos end {phase.outcome} {item.ti_id}"
        found = self.history.logs.get(item.id, "").count(line)
        if found != 1:
            yield Violation(Kind.LOG, where, f"{found} lines say {line!r}")

    def _died(self, item: Item) -> list[Death]:
        if item.claimed_at is None or item.settled_at is None:
            return []
        return [
            death
            for death in self.history.deaths
            if death.worker == item.worker and item.claimed_at - 1.0 <= death.at <= item.settled_at
        ]

    # --- across tasks ---------------------------------------------------------------------------------

    def _runs_under_one_grant(self) -> Iterator[Violation]:
        for item in self.history.items:
            starts = self._phases.get(item.id, ())
            if len(starts) > 1:
                yield Violation(
                    Kind.DOUBLED, name_of(item.key), f"its code began {len(starts)} times under one work item"
                )
        for effect in self._homeless:
            yield Violation(Kind.DOUBLED, name_of(effect.key), "its code began without a work item")

    def _overlaps(self) -> Iterator[Violation]:
        for key, items in self._items_by_key.items():
            runs = [(phase, item) for item in items for phase in self._phases.get(item.id, ())]
            runs.sort(key=lambda run: run[0].start.at)
            for (first, item), (second, _) in pairwise(runs):
                seconds = first.end.at - second.start.at if first.end else 0.0
                if seconds > CLOCK_SLACK_SECONDS and not _out_of_reach(item, self.history.lease_seconds):
                    what = f"try {second.start.try_number} began {seconds:.2f} s before try {first.start.try_number} ended"
                    yield Violation(Kind.OVERLAP, name_of(key), what)

    def _reports(self) -> Iterator[Violation]:
        items = {item.id: item for item in self.history.items}
        for report in self.history.reports:
            item = items.get(report.item)
            if item is not None and item.outcome in {"success", "failed"} and report.status >= 400:
                yield Violation(
                    Kind.DISAGREE,
                    f"{name_of(item.key)} (item {item.id})",
                    f"{item.detail} is committed; {report.worker} was told {report.status}",
                )

    # --- what is known --------------------------------------------------------------------------------

    @cached_property
    def _tasks(self) -> dict[TaskKey, Task]:
        return {task.key: task for task in self.history.tasks}

    @cached_property
    def _items_by_key(self) -> dict[TaskKey, list[Item]]:
        found: dict[TaskKey, list[Item]] = defaultdict(list)
        for item in sorted(self.history.items, key=lambda item: item.placed_at):
            found[item.key].append(item)
        return found

    def _items_of(self, key: TaskKey) -> list[Item]:
        return self._items_by_key.get(key, [])

    @cached_property
    def _phases(self) -> dict[str, list[Phase]]:
        """Return the executions of code by work item: each belongs to the last item of its task instance that was claimed before it."""
        found: dict[str, list[Phase]] = defaultdict(list)
        for ti_id, phases in _phases_by_ti(self.history.effects).items():
            claimed = sorted(
                (item for item in self.history.items if item.ti_id == ti_id and item.claimed_at is not None),
                key=lambda item: item.claimed_at or 0.0,
            )
            for phase in phases:
                before = [
                    item
                    for item in claimed
                    if (item.claimed_at or 0.0) <= phase.start.at + CLOCK_SLACK_SECONDS
                ]
                if before:
                    found[before[-1].id].append(phase)
                else:
                    self._homeless.append(phase.start)
        return found

    @cached_property
    def _homeless(self) -> list[Effect]:
        return []

    def _phase(self, item: Item) -> Phase | None:
        return next(iter(self._phases.get(item.id, ())), None)

    def _plan(self, key: TaskKey) -> Mapping[str, Any]:
        return self.history.plans.get((key[0], key[1]), {}).get(key[2], {})

    def _wanted(self, key: TaskKey) -> str:
        return {"skip": "skipped", "fail": "failed"}.get(self._plan(key).get("does", "succeed"), "success")

    def _returned(self, key: TaskKey) -> str | None:
        dag_id, run_id, task_id, map_index = key
        if task_id.startswith("calls_"):
            return None
        if task_id == "mapped":
            return value_of(run_id, f"mapped[{map_index}]")
        if task_id == "load":
            stored = "".join(regional_checks.members(run_id, "store"))
            return value_of(run_id, "load", stored)
        if task_id == "last":
            return value_of(run_id, "last", value_of(run_id, "first"))
        if dag_id == CHAIN:
            made = ""
            for number in range(int(task_id.removeprefix("c")) + 1):
                made = value_of(run_id, f"c{number}", made)
            return made
        return value_of(run_id, task_id)


def _out_of_reach(item: Item, lease_seconds: float) -> bool:
    """Return whether the item was given up after its worker had sent no heartbeat for a whole lease."""
    silent = (item.settled_at or 0.0) - (item.renewed_at or 0.0)
    return silent >= lease_seconds - CLOCK_SLACK_SECONDS


def _committed(item: Item) -> str | None:
    """Return the state that the item's work was committed with; None if the attempt was fenced."""
    return item.detail if item.outcome in {"success", "failed"} else None


def _phases_by_ti(effects: Iterable[Effect]) -> dict[str, list[Phase]]:
    found: dict[str, list[Phase]] = defaultdict(list)
    for effect in sorted(effects, key=lambda effect: effect.at):
        phases = found[effect.ti_id]
        if effect.what == "start":
            phases.append(Phase(effect, None))
        elif phases:
            phases[-1] = Phase(phases[-1].start, effect)
    return found


def count(violations: Sequence[Violation]) -> Counter[Kind]:
    """Count the violations by kind."""
    return Counter(violation.kind for violation in violations)
