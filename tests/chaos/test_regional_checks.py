"""Checks of triggers and stored XComs: a correct history has no violation, and each planted one is named by its kind."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from tests.chaos import regional_checks
from tests.chaos.history import Applied, Death, Fire, History
from tests.chaos.regional_checks import members
from tests.chaos.schedule import STORED, WAITING, Fault, Run, Schedule
from tests.chaos.test_checker import item
from tests.chaos.violations import Kind, Violation

from airbridge.core.residency.xcoms import Form, ObjectName, StoredXCom

RUN_ID = "h1-1-0"
WAITER = (WAITING, RUN_ID, "w1", -1)
STORE = (STORED, RUN_ID, "store", -1)
TRIGGER = item(WAITER, "ti0", 1, 10.0, id="trigger", detail="fired", epoch=2, lost_after=5.0)
TEXT = json.dumps(members(RUN_ID, "store"), separators=(",", ":")).encode()
REFERENCE = StoredXCom(
    "us-east-1",
    ObjectName.of(STORED, RUN_ID, "0" * 8 + "-0000-0000-0000-" + "0" * 12, hashlib.sha256(TEXT).hexdigest()),
    len(TEXT),
    Form.JSON,
)


def good(**changes: Any) -> History:
    """A trigger that was lost once and then fired, and a stored XCom."""
    whole: dict[str, Any] = {
        "schedule": Schedule(1, (Run(WAITING, {}),)),
        "runs": {(WAITING, RUN_ID): "success"},
        "plans": {},
        "triggers": (TRIGGER,),
        "settlements": {"trigger": 1},
        "applied": (Applied("trigger", "w0", 11.0, 11.1),),
        "fires": (Fire("ti0", 7.0), Fire("ti0", 10.9)),
        "xcoms": {(STORE, "return_value"): REFERENCE.encode()},
        "objects": {REFERENCE.object.key: REFERENCE.object.sha256},
    }
    return History(**{**whole, **changes})


def violations(history: History) -> list[Violation]:
    return [*regional_checks.triggers(history), *regional_checks.stored(history)]


def kinds(history: History) -> set[Kind]:
    return {violation.kind for violation in violations(history)}


def test_correct_history_has_no_violation() -> None:
    """A trigger that fired on two workers, of whose events the holder's was applied, is as promised."""
    assert violations(good()) == []


@pytest.mark.parametrize("state", ["placed", "sent", "claimed"])
def test_open_trigger_is_stuck(state: str) -> None:
    """A trigger that nobody runs any more, or whose event nobody applies, is a violation."""
    assert kinds(good(triggers=(replace(TRIGGER, state=state, outcome=None),), applied=())) == {Kind.STUCK}


def test_second_event_is_doubled() -> None:
    """Two events of one trigger were applied, and it was settled twice."""
    twice = (Applied("trigger", "w0", 11.0, 11.1), Applied("trigger", "w0", 11.0, 12.0))
    assert kinds(good(applied=twice)) == {Kind.DOUBLED}
    assert kinds(good(settlements={"trigger": 2})) == {Kind.DOUBLED}


def test_forgotten_event_is_lost() -> None:
    """A worker was killed with the event in its journal, and an event is applied that fired later."""
    journalled = Death("w0", 10.5, journalled=frozenset({"trigger"}))
    assert kinds(good(deaths=(journalled,))) == {Kind.LOST}
    assert kinds(good(deaths=(replace(journalled, at=11.05),))) == set()
    assert kinds(good(deaths=(replace(journalled, journalled=frozenset()),))) == set()
    assert kinds(good(deaths=(journalled,), lost=frozenset({"trigger"}))) == set()


def test_event_of_another_worker_is_found() -> None:
    """The event that was applied is of a worker that had lost the trigger."""
    assert kinds(good(applied=(Applied("trigger", "w1", 7.0, 11.1),))) == {Kind.FENCE}


def test_event_after_cancel_is_found() -> None:
    """An event before the trigger was cancelled is in order, and one after that is not."""
    assert kinds(good(cancelled={"trigger": 11.05})) == {Kind.FENCE}
    assert kinds(good(cancelled={"trigger": 11.2})) == set()


@pytest.mark.parametrize(("outcome", "cleared"), [("lost", True), ("failed", True), ("cancelled", False)])
def test_trigger_that_was_given_up(outcome: str, cleared: bool) -> None:
    """A trigger is lost by no cut, and cancelled only with its task."""
    given_up = replace(TRIGGER, outcome=outcome)
    cleared_tasks = frozenset({WAITER} if cleared else ())
    assert kinds(good(triggers=(given_up,), applied=(), cleared=cleared_tasks)) == {Kind.LOST}


def test_cancelled_with_its_task_is_allowed() -> None:
    """A trigger whose task was cleared ends without an event, also if its worker is silent for longer than `lost_after`."""
    for outcome in ("cancelled", "lost"):
        history = good(
            triggers=(replace(TRIGGER, outcome=outcome),),
            applied=(),
            cleared=frozenset({WAITER}),
            cancelled={"trigger": 10.5},
        )
        assert kinds(history) == set()


def test_event_without_its_code_is_invented() -> None:
    """An event was applied, or a trigger settled as fired, and its code did not fire."""
    assert kinds(good(fires=())) == {Kind.INVENTED}
    assert kinds(good(applied=())) == {Kind.INVENTED}


def test_time_of_arrival_is_found() -> None:
    """An event that was applied with another time than that at which its code fired."""
    assert kinds(good(applied=(Applied("trigger", "w0", 20.0, 20.1),))) == {Kind.DISAGREE}


@pytest.mark.parametrize("objects", [{}, {REFERENCE.object.key: "ab" * 32}], ids=["none", "another"])
def test_reference_without_its_object_is_found(objects: dict[str, str]) -> None:
    """A reference to no object, or to one of another content."""
    assert kinds(good(objects=objects)) == {Kind.REFERENCE}


def test_reference_to_another_value_is_found() -> None:
    """The stored value is what the task returned, and no other one."""
    assert regional_checks.is_stored(REFERENCE.encode(), STORE)
    assert not regional_checks.is_stored(REFERENCE.encode(), (*STORE[:2], "load", -1))
    assert not regional_checks.is_stored("a value", STORE)


def test_only_a_bucket_out_of_reach_excuses() -> None:
    """An attempt that failed to store or load may be retried if its worker was cut off from the bucket; no other may."""
    retried = item(STORE, "ti1", 1, 1.0, detail="up_for_retry")
    cut = Schedule(1, (), faults=(Fault(0.0, 1.0, 0, ("s3",), "refuse"),))
    assert not regional_checks.excused(good(), retried)
    assert regional_checks.excused(good(schedule=cut), retried)
    assert not regional_checks.excused(good(schedule=cut), replace(retried, detail="failed"))
    assert not regional_checks.excused(good(schedule=cut), replace(retried, key=WAITER))
