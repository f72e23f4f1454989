"""Bodies that pass the gateway's validation reach no code in Airflow's own decoders, whatever their types and classes.

`make bodies` runs it with 100,000 examples; AIRBRIDGE_BODY_EXAMPLES sets the number.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.security import grammar, tripwires
from tests.security.tripwires import Tripped

from airbridge.control_plane.gateway.validation import inert
from airbridge.control_plane.gateway.validation.bodies import Bodies, Route
from airbridge.control_plane.gateway.validation.triggers import TriggerClasses
from airbridge.core.violations import Violation

EXAMPLES = int(os.environ.get("AIRBRIDGE_BODY_EXAMPLES", "400"))
LONG = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
)
TRIGGER = "airflow.providers.standard.triggers.temporal.DateTimeTrigger"
BODIES = Bodies(TriggerClasses(frozenset({TRIGGER})))


@pytest.fixture(autouse=True, scope="module")
def _armed() -> Iterator[None]:
    with tripwires.armed():
        yield


def deferral(**changes: Any) -> dict[str, Any]:
    return {"state": "deferred", "classpath": TRIGGER, "next_method": "resume", **changes}


def next_kwargs(value: Any) -> tuple[Route, Any, Callable[[Any], Any]]:
    body = deferral(next_kwargs=value)
    return Route.STATE, body, lambda said: tripwires.decode_next_kwargs(said["next_kwargs"])


def trigger_kwargs(value: Any) -> tuple[Route, Any, Callable[[Any], Any]]:
    body = deferral(trigger_kwargs=value)
    return Route.STATE, body, lambda said: tripwires.decode_trigger_kwargs(said["trigger_kwargs"])


def classpath(value: Any) -> tuple[Route, Any, Callable[[Any], Any]]:
    def called(said: Any) -> None:
        if said["classpath"] != TRIGGER:
            raise Tripped(said["classpath"])

    return Route.STATE, deferral(classpath=value), called


def xcom(value: Any) -> tuple[Route, Any, Callable[[Any], Any]]:
    return Route.XCOM, value, tripwires.decode_xcom


def rendered_fields(value: Any) -> tuple[Route, Any, Callable[[Any], Any]]:
    return Route.RENDERED_FIELDS, {"field": value}, tripwires.decode_plain


def conf(value: Any) -> tuple[Route, Any, Callable[[Any], Any]]:
    return Route.DAG_RUN, {"conf": {"key": value}}, lambda said: tripwires.decode_plain(said["conf"])


def extra(value: Any) -> tuple[Route, Any, Callable[[Any], Any]]:
    event = {"dest_asset_key": {"name": "n", "uri": "u"}, "extra": {"key": value}}
    body = {"state": "success", "end_date": datetime.now(UTC).isoformat(), "outlet_events": [event]}
    return Route.STATE, body, lambda said: tripwires.decode_plain(said["outlet_events"][0]["extra"])


PLACES = (next_kwargs, trigger_kwargs, classpath, xcom, rendered_fields, conf, extra)


def accepted(place: Callable[[Any], Any], value: Any) -> bool:
    """Return whether the body passes; if it does, let Airflow decode it with the tripwires set. Raises `Tripped`."""
    route, body, decode = place(value)
    try:
        checked = BODIES.check(route, json.dumps(body))
    except Violation:
        return False
    assert checked.text is not None
    found = decode(json.loads(checked.text))
    if place in {next_kwargs, trigger_kwargs}:
        tripwires.check_result(found)
    return True


def described(value: Any) -> str:
    return str(value.get("__type", "dict")) if isinstance(value, dict) else type(value).__name__


def test_no_accepted_body_reaches_code() -> None:
    """Bodies of every place, of every type and class: none that passes imports, calls or makes what is not inert."""
    seen: Counter[str] = Counter()

    @LONG
    @given(st.sampled_from(PLACES), st.one_of(grammar.values(), grammar.kwargs()))
    def run(place: Callable[[Any], Any], value: Any) -> None:
        passed = accepted(place, value)
        seen[f"{place.__name__} {'passed' if passed else 'refused'}"] += 1

    run()
    print(dict(seen))
    # A validator that refused everything would pass, too.
    assert {"next_kwargs passed", "trigger_kwargs passed", "xcom passed", "conf passed"} <= seen.keys()
    assert sum(seen.values()) >= EXAMPLES


@pytest.mark.parametrize("kind", [each for each in grammar.types() if each not in inert._TYPES])
def test_type_outside_inert_set_is_refused(kind: str) -> None:
    """Each type of Airflow's enumeration but the inert ones, in the shape that Airflow decodes, at every place."""

    @settings(LONG, max_examples=max(20, EXAMPLES // 100))
    @given(grammar.of_type(kind))
    def run(value: Any) -> None:
        for place in (next_kwargs, trigger_kwargs, xcom, rendered_fields, conf, extra):
            assert not accepted(place, value)
            assert not accepted(place, {"__type": "dict", "__var": {"key": [value]}})

    run()


UNDECODED = frozenset(
    {
        *("asset_event_accessor", "Job", "task_instance", "dag_run", "dag_model", "log_template", "trigger"),
        *("taskgroup", "edgeinfo", "x", "START_TRIGGER_ARGS", "airflow.timetables.simple.NullTimetable"),
    }
)
"""Types that `BaseSerialization.deserialize` does not know in 3.0.4: it raises, in whatever process meets them."""
CONTEXT = "task_context"
"""Airflow's decoder fails over it before it makes anything: no inert value has the task that it requires."""
MUTANTS = [each for each in grammar.types() if each not in inert._TYPES]


@pytest.mark.parametrize("kind", MUTANTS)
def test_validator_gap_is_caught(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant of the validator, with one type more among the inert ones, does not survive the same check."""
    monkeypatch.setitem(inert._TYPES, kind, lambda _value, _place: None)  # type: ignore[arg-type] # a dict, if frozen to readers

    @settings(LONG, max_examples=60, phases=[Phase.generate])
    @given(grammar.of_type(kind).map(lambda each: {"__type": "dict", "__var": {"key": each}}))
    def run(value: Any) -> None:
        accepted(next_kwargs, value)

    with pytest.raises(
        TypeError if kind in UNDECODED else (KeyError, AttributeError) if kind == CONTEXT else Tripped
    ):
        run()


def test_inert_types_are_accepted() -> None:
    """Every type that the validator lists as inert passes."""
    for kind, var in (
        ("dict", {"a": 1}),
        ("set", [1, "a"]),
        ("tuple", [[1], 2]),
        ("datetime", 1.5),
        ("timedelta", 60.0),
        ("timezone", "Europe/Berlin"),
        ("timezone", 3600),
        ("relativedelta", {"days": 1, "weekday": [4, 1]}),
        ("arg_not_set", None),
    ):
        value = {"__type": "dict", "__var": {"key": {"__type": kind, "__var": var}}}
        assert accepted(next_kwargs, value), kind
        assert accepted(trigger_kwargs, value), kind
    assert {"dict", "set", "tuple", "datetime", "timedelta", "timezone", "relativedelta", "arg_not_set"} == {
        *inert._TYPES
    }


def test_sets_hold_what_airflow_can_hash() -> None:
    """Airflow's decoder ends with a TypeError for a set of time zones: the refusal names what is wrong instead."""
    for kind, value in (("timezone", "Europe/Berlin"), ("relativedelta", {"days": 1}), ("dict", {})):
        members = [{"__type": kind, "__var": value}]
        kwargs = {"__type": "dict", "__var": {"a": {"__type": "set", "__var": members}}}
        with pytest.raises(Violation, match="hashed"):
            BODIES.check(Route.STATE, json.dumps(deferral(next_kwargs=kwargs)))
