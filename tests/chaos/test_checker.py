"""The checker: silent about what is as promised, and about each thing that is not, it says which."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.chaos.checker import Kind, check, expected_keys, value_of
from tests.chaos.history import Death, Effect, History, Item, Report, Task
from tests.chaos.schedule import CHAIN, LENGTH, Run, Schedule, draw

RUN_ID = "h1-1-0"
KEYS = expected_keys(CHAIN, RUN_ID)
FIRST = KEYS[0]


def effects(key: Any, ti_id: str, try_number: int, at: float, outcome: str | None) -> list[Effect]:
    start = Effect(key, ti_id, try_number, "start", None, at)
    return [start] if outcome is None else [start, Effect(key, ti_id, try_number, "end", outcome, at + 1)]


def item(key: Any, ti_id: str, try_number: int, at: float, **changes: Any) -> Item:
    values: dict[str, Any] = {
        "id": f"item-{ti_id}",
        "key": key,
        "ti_id": ti_id,
        "try_number": try_number,
        "state": "settled",
        "outcome": "success",
        "detail": "success",
        "epoch": 1,
        "worker": "w0",
        "lost_after": 60.0,
        "placed_at": at - 0.2,
        "claimed_at": at - 0.1,
        "renewed_at": at + 1,
        "settled_at": at + 1.1,
        **changes,
    }
    return Item(**values)


def good() -> History:
    """A chain in which nothing went wrong."""
    made, parts, items, tasks, xcoms, logs = "", [], [], [], {}, {}
    for number, key in enumerate(KEYS):
        ti_id, at, made = f"ti{number}", 10.0 * number, value_of(RUN_ID, key[2], made)
        parts += effects(key, ti_id, 1, at, "success")
        items.append(item(key, ti_id, 1, at))
        tasks.append(Task(key, ti_id, "success", 1))
        xcoms[key, "return_value"], xcoms[key, "by_try_1"] = made, ti_id
        logs[f"item-{ti_id}"] = f"chaos end success {ti_id}\n"
    return History(
        schedule=Schedule(1, (Run(CHAIN, {}),)),
        runs={(CHAIN, RUN_ID): "success"},
        plans={(CHAIN, RUN_ID): {}},
        effects=tuple(parts),
        items=tuple(items),
        tasks=tuple(tasks),
        xcoms=xcoms,
        logs=logs,
        journals={"w0": 0},
        settlements={item.id: 1 for item in items},
    )


def with_first(
    history: History, *before: Item, phases: list[Effect] | None = None, **changes: Any
) -> History:
    """The first task at its second try: `before` are its earlier work items."""
    second = replace(
        history.items[0], ti_id="ti0b", try_number=2, id="item-ti0b", placed_at=4.9, claimed_at=5.0, **changes
    )
    second = replace(second, renewed_at=6.0, settled_at=6.2)
    return replace(
        history,
        items=(*before, second, *history.items[1:]),
        tasks=(Task(FIRST, "ti0b", "success", 2), *history.tasks[1:]),
        effects=(*(phases or []), *effects(FIRST, "ti0b", 2, 5.1, "success"), *history.effects[2:]),
        xcoms={
            **{name: value for name, value in history.xcoms.items() if name != (FIRST, "by_try_1")},
            (FIRST, "by_try_2"): "ti0b",
        },
        logs={**history.logs, "item-ti0b": "chaos end success ti0b"},
        settlements={**history.settlements, "item-ti0b": 1},
    )


def kinds(history: History) -> set[Kind]:
    return {violation.kind for violation in check(history)}


def change_item(history: History, **changes: Any) -> History:
    return replace(history, items=(replace(history.items[0], **changes), *history.items[1:]))


def test_a_good_history_has_no_violations() -> None:
    """Five links of a chain, each run once, committed once, with XComs and logs."""
    assert check(good()) == []


def test_an_attempt_fenced_after_its_patience_is_honest() -> None:
    """Its worker was silent for `lost_after`; the second try is what counts."""
    lost = item(
        FIRST, "ti0", 1, 0, outcome="lost", detail="lost", lost_after=2.0, renewed_at=1.0, settled_at=3.1
    )
    assert check(with_first(good(), lost, phases=effects(FIRST, "ti0", 1, 0, "success"))) == []


def test_an_attempt_fenced_too_early_is_not() -> None:
    """One second of silence, where two are allowed."""
    lost = item(
        FIRST, "ti0", 1, 0, outcome="lost", detail="lost", lost_after=2.0, renewed_at=1.0, settled_at=2.0
    )
    assert kinds(with_first(good(), lost)) == {Kind.DISHONEST}


def test_a_killed_worker_excuses_a_failure() -> None:
    """The result never reached its journal."""
    failed = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    history = with_first(good(), failed, phases=effects(FIRST, "ti0", 1, 0, "success"))
    assert kinds(history) == {Kind.LOST}
    assert check(replace(history, deaths=(Death("w0", 1.05, frozenset()),))) == []
    assert kinds(replace(history, deaths=(Death("w1", 1.05, frozenset()),))) == {Kind.LOST}


def test_a_journalled_result_may_not_be_lost_even_to_a_kill() -> None:
    """It was on the disk when the worker died."""
    failed = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    history = with_first(good(), failed, phases=effects(FIRST, "ti0", 1, 0, "success"))
    assert kinds(replace(history, deaths=(Death("w0", 1.05, frozenset({"item-ti0"})),))) == {Kind.LOST}


def test_a_failure_that_nothing_explains() -> None:
    """The code never got to its end, and nobody was killed."""
    failed = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    assert kinds(with_first(good(), failed)) == {Kind.DISHONEST}


def test_a_result_that_was_not_committed() -> None:
    """Code said success; failed was committed."""
    history = change_item(good(), outcome="failed", detail="failed")
    history = replace(history, tasks=(Task(FIRST, "ti0", "failed", 1), *history.tasks[1:]))
    assert kinds(history) == {Kind.LOST}


def test_a_success_that_no_code_produced() -> None:
    """The code began and never ended."""
    history = good()
    assert kinds(replace(history, effects=(history.effects[0], *history.effects[2:]))) == {Kind.INVENTED}


def test_two_final_outcomes() -> None:
    """Both tries of a task were committed as success."""
    first = item(FIRST, "ti0", 1, 0)
    history = with_first(good(), first, phases=effects(FIRST, "ti0", 1, 0, "success"))
    assert Kind.DOUBLED in kinds(history)


def test_a_work_item_that_was_settled_twice() -> None:
    """The ledger's events tell of two outcomes of one work item."""
    history = good()
    assert kinds(replace(history, settlements={**history.settlements, "item-ti0": 2})) == {Kind.DOUBLED}


def test_code_that_ran_twice_under_one_grant() -> None:
    """Two starts, one work item."""
    history = good()
    again = Effect(FIRST, "ti0", 1, "start", None, 0.5)
    assert Kind.DOUBLED in kinds(replace(history, effects=(again, *history.effects)))


def test_code_that_ran_without_a_grant() -> None:
    """It began before anything was claimed."""
    history = good()
    early = Effect(FIRST, "ti0", 1, "start", None, -5.0)
    assert Kind.DOUBLED in kinds(replace(history, effects=(early, *history.effects)))


@pytest.mark.parametrize("state", ["placed", "sent", "claimed"])
def test_a_work_item_that_is_not_settled(state: str) -> None:
    """All is well again, and it hangs."""
    assert Kind.STUCK in kinds(change_item(good(), state=state, outcome=None, detail=""))


@pytest.mark.parametrize("state", [None, "queued", "running", "up_for_retry", "deferred"])
def test_a_task_that_is_not_over(state: str | None) -> None:
    """Airflow still waits for it."""
    history = good()
    tasks = (Task(FIRST, "ti0", state, 1), *history.tasks[1:])
    assert Kind.STUCK in kinds(replace(history, tasks=tasks, runs={(CHAIN, RUN_ID): "running"}))


def test_records_left_in_a_journal() -> None:
    """A worker still has something to report."""
    assert kinds(replace(good(), journals={"w0": 2})) == {Kind.STUCK}


def test_an_xcom_of_an_attempt_that_did_not_count() -> None:
    """A fenced attempt's write is to be seen."""
    lost = item(
        FIRST, "ti0", 1, 0, outcome="lost", detail="lost", lost_after=2.0, renewed_at=1.0, settled_at=3.1
    )
    history = with_first(good(), lost, phases=effects(FIRST, "ti0", 1, 0, "success"))
    assert kinds(replace(history, xcoms={**history.xcoms, (FIRST, "by_try_1"): "ti0"})) == {Kind.FENCE}


def test_a_wrong_xcom() -> None:
    """What a task returned is not what is there."""
    history = good()
    assert kinds(replace(history, xcoms={**history.xcoms, (FIRST, "return_value"): "?"})) == {Kind.LOST}


def test_ledger_and_airflow_disagree() -> None:
    """Airflow has a failure where the ledger has a success."""
    history = good()
    tasks = (Task(FIRST, "ti0", "failed", 1), *history.tasks[1:])
    assert Kind.DISAGREE in kinds(replace(history, tasks=tasks))


def test_a_worker_that_was_told_no_of_a_committed_result() -> None:
    """The answer contradicts what was committed."""
    assert kinds(replace(good(), reports=(Report("w0", "item-ti0", 409),))) == {Kind.DISAGREE}
    assert check(replace(good(), reports=(Report("w0", "item-ti0", 204),))) == []


def test_a_log_that_lacks_its_end() -> None:
    """The last line that the code printed is not in the bucket; nor may it be there twice."""
    history = good()
    assert kinds(replace(history, logs={**history.logs, "item-ti0": "chaos start"})) == {Kind.LOG}
    twice = "chaos end success ti0\n" * 2
    assert kinds(replace(history, logs={**history.logs, "item-ti0": twice})) == {Kind.LOG}


def test_an_error_in_task_code() -> None:
    """Task code saw what it should have been spared."""
    failed = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    history = with_first(good(), failed, phases=effects(FIRST, "ti0", 1, 0, "error: ConnectionError()"))
    assert kinds(history) == {Kind.ERROR}


def test_a_seed_gives_one_schedule() -> None:
    """The same, however often it is drawn; and another one for another seed."""
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert len(draw(7).runs[4].plan) == LENGTH
