"""Scores, justified survivors and what is kept of earlier runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tests.mutation
from tests.mutation.operators import Key, Mutant, mutants
from tests.mutation.reach import MeasuredFile, Reach
from tests.mutation.targets import TARGETS, Target, chosen, focus_of
from tests.mutation.verdicts import (
    EarlierVerdicts,
    Fate,
    Justified,
    Verdict,
    entry_text,
    score,
    table,
    table_of,
    with_table,
)

HERE = Path(tests.mutation.__file__).parent

[MUTANT] = [
    each for each in mutants("m", "def f(a):\n    return a < 'x'\n", {}) if each.operator == "comparison"
]
TARGET = Target("m", "src/m.py", ("tests/unit/test_focus.py",))


def verdict(fate: Fate, key: Key = MUTANT.key) -> Verdict:
    return Verdict(key, fate, 2, 1, 0.1)


def justified(tmp_path: Path, text: str) -> Justified:
    path = tmp_path / "justified.toml"
    path.write_text(text)
    return Justified.read(path)


def test_score_counts_what_was_noticed(tmp_path: Path) -> None:
    """A time-out counts as noticed, an unreached line as survived, and a justified survivor not at all."""
    other = (*MUTANT.key[:4], "a -> b")
    verdicts = [
        verdict(Fate.KILLED),
        verdict(Fate.TIMED_OUT),
        verdict(Fate.UNREACHED),
        verdict(Fate.SURVIVED, other),
    ]
    found = score(9, verdicts, justified(tmp_path, entry_text(other, "equivalent")))
    assert (found.mutants, found.tried, found.survived, found.justified) == (9, 4, 2, 1)
    assert round(found.percent) == 67
    assert "| m | 9 | 4 | 1 | 1 | 2 | 1 | 67 % |" in table({"m": found})


def test_empty_score_is_whole() -> None:
    """A module without mutants has nothing to answer for."""
    assert score(0, [], Justified({})).percent == 100.0


def test_entry_text_reads_back(tmp_path: Path) -> None:
    """An entry printed for justified.toml is read back unchanged."""
    found = justified(tmp_path, entry_text(MUTANT.key, "it is equivalent"))
    assert found.reasons == {MUTANT.key: "it is equivalent"}


def test_entry_needs_a_reason(tmp_path: Path) -> None:
    """An entry without a reason, or with an empty one, is refused."""
    for text in (entry_text(MUTANT.key).replace("reason", "# reason"), entry_text(MUTANT.key)):
        with pytest.raises(ValueError, match="reason"):
            justified(tmp_path, text)


def test_unused_entry_is_named() -> None:
    """An entry whose mutant the tests notice can go."""
    reasons = Justified({MUTANT.key: "equivalent"})
    assert reasons.unused([verdict(Fate.KILLED)]) == [MUTANT.key]
    assert reasons.unused([verdict(Fate.SURVIVED)]) == []
    assert reasons.unused([]) == []


def test_kill_holds_while_module_stays(tmp_path: Path) -> None:
    """An earlier kill is trusted for the same text of the module; a survivor is tried again, unless it has a reason."""
    none, reasoned = Justified({}), Justified({MUTANT.key: "equivalent"})
    earlier = EarlierVerdicts.read(tmp_path / "state" / "verdicts.json")
    earlier.note(verdict(Fate.KILLED), "digest")
    again = EarlierVerdicts.read(tmp_path / "state" / "verdicts.json")
    assert again.settled(MUTANT, "digest", none) == verdict(Fate.KILLED)
    assert again.settled(MUTANT, "another", reasoned) is None
    again.note(verdict(Fate.SURVIVED), "digest")
    assert again.settled(MUTANT, "digest", none) is None
    assert again.settled(MUTANT, "digest", reasoned) == verdict(Fate.SURVIVED)


def reach_of(**seconds: float) -> Reach:
    return Reach(
        {
            f"tests/unit/test_{name}.py": MeasuredFile(
                "",
                {f"{name}::a": each, f"{name}::b": each},
                {"src/m.py": {f"{name}::a": [2], f"{name}::b": [7]}},
            )
            for name, each in seconds.items()
        }
    )


def test_only_reaching_tests_are_chosen() -> None:
    """The focus comes first, and only tests that run the mutant's lines are run."""
    tests = reach_of(quick=0.1, focus=5.0).tests_of(MUTANT, TARGET, budget_seconds=30)
    assert tests == [("focus::a", 5.0), ("quick::a", 0.1)]


def test_budget_cuts_the_slowest() -> None:
    """Tests beyond the budget are left out, but at least one is run."""
    reach = reach_of(slow=50.0, slower=60.0)
    assert reach.tests_of(MUTANT, TARGET, budget_seconds=30) == [("slow::a", 50.0)]


def test_all_tests_reach_import_lines() -> None:
    """A line that runs at import belongs to every test that runs anything of the module."""
    at_import: Mutant = mutants("m", "TRIES = 2\n", {})[0]
    tests = reach_of(quick=0.1).tests_of(at_import, TARGET, budget_seconds=30)
    assert [name for name, _ in tests] == ["quick::a", "quick::b"]


def test_unknown_module_is_refused() -> None:
    """The message names the modules that there are."""
    with pytest.raises(ValueError, match=r"no module ledgr; there are ledger\.items"):
        chosen("ledgr")


def test_readme_has_the_scores() -> None:
    """The table of README.md is that of results.json, with every module, and is written in its place only."""
    page = (HERE / "README.md").read_text()
    modules = json.loads((HERE / "results.json").read_text())["modules"]
    assert [*modules] == [target.name for target in TARGETS]
    assert with_table(page, table_of(modules)) == page
    assert with_table(with_table(page, "| other |"), table_of(modules)) == page


def test_reasons_are_of_lines_that_exist() -> None:
    """An entry of justified.toml whose line has changed is noticed: its mutant is another one now."""
    paths = {target.name: HERE.parents[1] / target.path for target in TARGETS}
    gone = []
    for module, function, line, *rest in Justified.read(HERE / "justified.toml").reasons:
        lines = [each.strip() for each in paths[module].read_text().splitlines()]
        name = function.rpartition(".")[2]
        if line not in lines or not any(each.startswith(f"def {name}(") for each in lines):
            gone.append((module, function, line, *rest))
    assert gone == []


def test_focus_is_of_files_that_exist() -> None:
    """Every module has tests of its own, and a file that was renamed is noticed."""
    assert all(target.focus for target in TARGETS)
    root = HERE.parents[1]
    assert [name for name in focus_of(TARGETS) if not (root / name).is_file()] == []
    assert [target.path for target in TARGETS if not (root / target.path).is_file()] == []
