"""The checker: it accepts a correct history, and names the kind of each planted violation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.chaos.checker import check, expected_keys
from tests.chaos.history import Death, Effect, History, Item, Report, Task
from tests.chaos.schedule import CHAIN, LENGTH, Run, Schedule, draw
from tests.chaos.violations import Kind, value_of

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


def test_fence_after_lost_after_passes() -> None:
    """Its worker was silent for `lost_after`; the second try is what counts."""
    lost = item(
        FIRST, "ti0", 1, 0, outcome="lost", detail="lost", lost_after=2.0, renewed_at=1.0, settled_at=3.1
    )
    assert check(with_first(good(), lost, phases=effects(FIRST, "ti0", 1, 0, "success"))) == []


def test_early_fence_is_found() -> None:
    """An attempt that is fenced after one second of silence, where two are allowed, is a violation."""
    lost = item(
        FIRST, "ti0", 1, 0, outcome="lost", detail="lost", lost_after=2.0, renewed_at=1.0, settled_at=2.0
    )
    assert kinds(with_first(good(), lost)) == {Kind.DISHONEST}


def test_a_killed_worker_excuses_a_failure() -> None:
    """A failure is honest if the worker was killed before the result reached its journal."""
    failed = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    history = with_first(good(), failed, phases=effects(FIRST, "ti0", 1, 0, "success"))
    assert kinds(history) == {Kind.LOST}
    assert check(replace(history, deaths=(Death("w0", 1.05, frozenset()),))) == []
    assert kinds(replace(history, deaths=(Death("w1", 1.05, frozenset()),))) == {Kind.LOST}


def test_lost_journalled_result_is_found() -> None:
    """A result is lost if it was in the journal when the worker died and was not committed."""
    failed = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    history = with_first(good(), failed, phases=effects(FIRST, "ti0", 1, 0, "success"))
    assert kinds(replace(history, deaths=(Death("w0", 1.05, frozenset({"item-ti0"})),))) == {Kind.LOST}


def test_a_failure_that_nothing_explains() -> None:
    """A failure is dishonest if its code did not end and no worker was killed."""
    failed = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    assert kinds(with_first(good(), failed)) == {Kind.DISHONEST}


def test_a_result_that_was_not_committed() -> None:
    """A result is lost if the code succeeded and a failure was committed."""
    history = change_item(good(), outcome="failed", detail="failed")
    history = replace(history, tasks=(Task(FIRST, "ti0", "failed", 1), *history.tasks[1:]))
    assert kinds(history) == {Kind.LOST}


def test_a_success_that_no_code_produced() -> None:
    """A success is invented if its code began and never ended."""
    history = good()
    assert kinds(replace(history, effects=(history.effects[0], *history.effects[2:]))) == {Kind.INVENTED}


def test_two_final_outcomes() -> None:
    """A task is doubled if both of its tries were committed as success."""
    first = item(FIRST, "ti0", 1, 0)
    history = with_first(good(), first, phases=effects(FIRST, "ti0", 1, 0, "success"))
    assert Kind.DOUBLED in kinds(history)


def test_double_settlement_is_found() -> None:
    """The ledger's events show two outcomes of one work item."""
    history = good()
    assert kinds(replace(history, settlements={**history.settlements, "item-ti0": 2})) == {Kind.DOUBLED}


def test_two_starts_are_found() -> None:
    """Two starts of one work item under one grant."""
    history = good()
    again = Effect(FIRST, "ti0", 1, "start", None, 0.5)
    assert Kind.DOUBLED in kinds(replace(history, effects=(again, *history.effects)))


def test_code_that_ran_without_a_grant() -> None:
    """Code that began before its item was claimed is a violation."""
    history = good()
    early = Effect(FIRST, "ti0", 1, "start", None, -5.0)
    assert Kind.DOUBLED in kinds(replace(history, effects=(early, *history.effects)))


@pytest.mark.parametrize("state", ["placed", "sent", "claimed"])
def test_unsettled_item_is_found(state: str) -> None:
    """An item that is open after the faults have ended is a violation."""
    assert Kind.STUCK in kinds(change_item(good(), state=state, outcome=None, detail=""))


@pytest.mark.parametrize("state", [None, "queued", "running", "up_for_retry", "deferred"])
def test_a_task_that_is_not_over(state: str | None) -> None:
    """A task that Airflow still waits for is stuck."""
    history = good()
    tasks = (Task(FIRST, "ti0", state, 1), *history.tasks[1:])
    assert Kind.STUCK in kinds(replace(history, tasks=tasks, runs={(CHAIN, RUN_ID): "running"}))


def test_records_left_in_a_journal() -> None:
    """A record that a worker has yet to report is stuck."""
    assert kinds(replace(good(), journals={"w0": 2})) == {Kind.STUCK}


def test_fenced_attempts_xcom_is_found() -> None:
    """A fenced attempt's write is visible."""
    lost = item(
        FIRST, "ti0", 1, 0, outcome="lost", detail="lost", lost_after=2.0, renewed_at=1.0, settled_at=3.1
    )
    history = with_first(good(), lost, phases=effects(FIRST, "ti0", 1, 0, "success"))
    assert kinds(replace(history, xcoms={**history.xcoms, (FIRST, "by_try_1"): "ti0"})) == {Kind.FENCE}


def test_a_wrong_xcom() -> None:
    """A result is lost if the stored XCom differs from the returned value."""
    history = good()
    assert kinds(replace(history, xcoms={**history.xcoms, (FIRST, "return_value"): "?"})) == {Kind.LOST}


def test_ledger_and_airflow_disagree() -> None:
    """Airflow has a failure where the ledger has a success."""
    history = good()
    tasks = (Task(FIRST, "ti0", "failed", 1), *history.tasks[1:])
    assert Kind.DISAGREE in kinds(replace(history, tasks=tasks))


def test_contradicting_answer_is_found() -> None:
    """The answer to the worker contradicts the committed result."""
    assert kinds(replace(good(), reports=(Report("w0", "item-ti0", 409),))) == {Kind.DISAGREE}
    assert check(replace(good(), reports=(Report("w0", "item-ti0", 204),))) == []


def test_a_log_that_lacks_its_end() -> None:
    """The last line that the code printed is not in the bucket; nor may it be there twice."""
    history = good()
    assert kinds(replace(history, logs={**history.logs, "item-ti0": "chaos start"})) == {Kind.LOG}
    twice = "chaos end success ti0\n" * 2
    assert kinds(replace(history, logs={**history.logs, "item-ti0": twice})) == {Kind.LOG}


def test_an_error_in_task_code() -> None:
    """An error in task code that its plan does not contain is a violation."""
    failed = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    history = with_first(good(), failed, phases=effects(FIRST, "ti0", 1, 0, "error: ConnectionError()"))
    assert kinds(history) == {Kind.ERROR}


def test_a_seed_gives_one_schedule() -> None:
    """A seed always gives the same schedule, and another seed another one."""
    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert len(draw(7).runs[4].plan) == LENGTH


def overlapping(**changes: Any) -> History:
    """A first try that was cancelled and went on until 9.0, and a second one that began at 5.1."""
    first = item(FIRST, "ti0", 1, 4.0, outcome="success", detail="up_for_retry", settled_at=5.0, **changes)
    went_on = [
        Effect(FIRST, "ti0", 1, "start", None, 4.0),
        Effect(FIRST, "ti0", 1, "end", "up_for_retry", 9.0),
    ]
    return with_first(good(), first, phases=went_on)


def test_overlapping_attempts_are_found() -> None:
    """The second attempt began while the first still ran, and its worker had sent a heartbeat a moment before."""
    assert Kind.OVERLAP in kinds(overlapping(renewed_at=4.9))


def test_overlap_of_silent_worker_is_allowed() -> None:
    """A worker that was silent for a whole lease cannot have received the order: its attempt may still run."""
    assert Kind.OVERLAP not in kinds(overlapping(renewed_at=0.5))


def test_consecutive_attempts_are_allowed() -> None:
    """A second attempt that begins when the first has ended is how it should be."""
    first = item(FIRST, "ti0", 1, 0, detail="up_for_retry", settled_at=2.0)
    history = with_first(good(), first, phases=effects(FIRST, "ti0", 1, 0.1, "up_for_retry"))
    assert Kind.OVERLAP not in kinds(history)
