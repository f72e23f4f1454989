"""Mutation operators: the faults that are found in a module's text."""

from __future__ import annotations

import pytest
from tests.mutation.operators import Mutant, enums_in, mutants

ENUMS = {"ItemState": ("PLACED", "SENT", "CLAIMED")}


def made(body: str) -> list[Mutant]:
    return mutants("m", f"def f(a, b, row):\n    {body}\n", ENUMS)


def bodies(body: str) -> set[str]:
    return {mutant.source.split("\n", 1)[1].strip() for mutant in made(body)}


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("x = a < b", "x = a <= b"),
        ("x = a is None", "x = a is not None"),
        ("x = a and b", "x = (a or b)"),
        ("x = a and b", "x = (a)"),
        ("x = not a", "x = (a)"),
        ("x = a + b", "x = (a - b)"),
        ("x = 3", "x = 4"),
        ("x = 3", "x = 2"),
        ("x = True", "x = False"),
        ("x = min(a, b)", "x = max(a, b)"),
        ("x = any(a)", "x = all(a)"),
        ("x = ItemState.SENT", "x = ItemState.CLAIMED"),
        ("a.send(b)", "pass"),
        ("raise ValueError(a)", "pass"),
        ("row.epoch += 1", "pass"),
        ("row.owner = a", "pass"),
        ("return a", "return None"),
        ("x = query.where(a, b)", "x = query.where(b)"),
        ("x = query.where(a).limit(b)", "x = query.where(a)"),
        ("x = f(a, skip_locked=True)", "x = f(a, skip_locked=False)"),
    ],
)
def test_operator_makes_fault(body: str, fault: str) -> None:
    """Each operator makes its fault out of the smallest text that has one."""
    assert fault in bodies(body)


def test_condition_is_negated() -> None:
    """A condition without an operator of its own is negated as a whole."""
    [mutant] = [each for each in made("if a(b):\n        raise b") if each.operator == "condition negated"]
    assert "if (not (a(b))):" in mutant.source


def test_state_dropped_from_query() -> None:
    """A query that forgets one of its states: planted by hand once, and it survived."""
    faults = bodies("x = row.state.in_((ItemState.PLACED, ItemState.SENT))")
    assert {"x = row.state.in_((ItemState.PLACED,))", "x = row.state.in_((ItemState.SENT,))"} <= faults


def test_in_flight_messages_forgotten() -> None:
    """A queue with messages in flight counts as empty: planted by hand once, and it survived."""
    assert "empty = (depth.visible) == 0" in bodies("empty = depth.visible + depth.in_flight == 0")


@pytest.mark.parametrize(
    "body",
    [
        '"""Return 3 of them."""',
        'log.info("sent", count=len(a) + 1)',
        "x: tuple[int, ...] | None = None",
        'x = f"{a + 1} of {b}"',
        "import a",
    ],
)
def test_text_for_people_is_left_alone(body: str) -> None:
    """Docstrings, log calls, messages, annotations and imports have no faults of interest."""
    assert bodies(body) == set()


def test_tuning_numbers_are_left_alone() -> None:
    """A module's named durations and sizes are skipped; a small count is a rule, and is not."""
    source = "TIMEOUT_SECONDS = 30.0\nLIMIT = 100\nTRIES = 2\n"
    assert {mutant.before for mutant in mutants("m", source, {})} == {"2"}


def test_faults_compile_and_differ() -> None:
    """Every mutant is a module of its own."""
    found = made("return a + 1 if a and not b else ItemState.PLACED")
    assert len({mutant.source for mutant in found}) == len(found) > 5
    for mutant in found:
        compile(mutant.source, "m", "exec")


def test_offsets_count_bytes() -> None:
    """Text beyond ASCII before a fault on the same line moves nothing."""
    assert "x = ('ä', 2)" in bodies("x = ('ä', 1)")


def test_identity_ignores_line_numbers() -> None:
    """A justification holds when unrelated lines are added above."""
    source = "def f(a):\n    return a < 1\n"
    keys = {mutant.key for mutant in mutants("m", source, {})}
    assert {mutant.key for mutant in mutants("m", f"import os\n\n\n{source}", {})} == keys


def test_equal_changes_are_numbered() -> None:
    """Two arguments of a line that are True have mutants of their own."""
    found = [mutant.key[-1] for mutant in made("row(a=True, b=True)") if mutant.operator == "boolean"]
    assert found == ["True -> False", "True -> False (2)"]


def test_function_is_qualified() -> None:
    """A mutant names the class and function in which it stands."""
    source = "class A:\n    limit: int = 1\n\n    def f(self, x):\n        return x\n"
    found = {mutant.function: mutant.at_import for mutant in mutants("m", source, {})}
    assert found == {"A": True, "A.f": False}


def test_lines_are_those_of_the_statement() -> None:
    """A test that runs any line of a statement reaches its faults; a block's head is taken without the block."""
    source = "def f(a):\n    if (\n        a > 1\n    ):\n        return a\n"
    [head] = {mutant.lines for mutant in mutants("m", source, {}) if mutant.operator == "comparison"}
    assert head == (2, 4)


def test_defaults_are_those_of_the_function() -> None:
    """A parameter's default counts as run by every test that runs the function: the line itself runs at import only."""
    source = "def f(a, wait=True):\n    if a:\n        return wait\n    return a\n"
    [default] = {mutant.lines for mutant in mutants("m", source, {}) if mutant.operator == "boolean"}
    assert default == (1, 4)


def test_enum_members_are_found() -> None:
    """Members are read from the sources, in order."""
    assert enums_in(
        ["class Mode(StrEnum):\n    ON = 'on'\n    OFF = 'off'\n\nclass Other:\n    X = 1\n"]
    ) == {"Mode": ("ON", "OFF")}
