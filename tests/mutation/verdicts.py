"""Verdicts on mutants, the survivors that are justified, and the score of each module."""

from __future__ import annotations

import json
import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from tests.mutation.operators import Key, Mutant

TABLE_BEGINS: Final = "<!-- scores: written by make mutants -->"
TABLE_ENDS: Final = "<!-- end of the scores -->"


class Fate(StrEnum):
    """Fate of a mutant."""

    KILLED = "killed"
    TIMED_OUT = "timed out"
    SURVIVED = "survived"
    UNREACHED = "unreached"
    """No test runs its line."""

    @property
    def noticed(self) -> bool:
        """Return whether the tests noticed it."""
        return self in {Fate.KILLED, Fate.TIMED_OUT}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Fate of one mutant, and the test that killed it."""

    key: Key
    fate: Fate
    line: int
    tests: int
    """Upper bound of the number of tests that were run."""
    seconds: float
    killer: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """The verdicts on one module in numbers."""

    mutants: int
    """All that there are."""
    tried: int
    killed: int
    timed_out: int
    survived: int
    justified: int
    """Survivors with a reason in justified.toml."""

    @property
    def percent(self) -> float:
        """Share of the mutants tried that the tests noticed, the justified ones left out."""
        counted = self.tried - self.justified
        return 100.0 * (self.killed + self.timed_out) / counted if counted else 100.0


class Justified:
    """The survivors that are allowed to live, each with its reason."""

    def __init__(self, reasons: Mapping[Key, str]) -> None:
        self.reasons = reasons

    @classmethod
    def read(cls, path: Path) -> Justified:
        """Read justified.toml. Raises `ValueError` naming an entry that lacks a key."""
        entries = tomllib.loads(path.read_text()).get("survivor", []) if path.exists() else []
        return cls(dict(_entry(each) for each in entries))

    def __contains__(self, key: Key) -> bool:
        return key in self.reasons

    def unused(self, verdicts: Iterable[Verdict]) -> list[Key]:
        """Return entries whose mutant was tried and noticed: they can go."""
        noticed = {verdict.key for verdict in verdicts if verdict.fate.noticed}
        return [key for key in self.reasons if key in noticed]


def _entry(values: Mapping[str, str]) -> tuple[Key, str]:
    names = ("module", "function", "line", "operator", "change", "reason")
    missing = [name for name in names if name not in values or (name == "reason" and not values[name])]
    if missing:
        raise ValueError(f"justified.toml: {dict(values)} lacks {', '.join(missing)}")
    key = (values["module"], values["function"], values["line"], values["operator"], values["change"])
    return key, values["reason"]


def entry_text(key: Key, reason: str = "") -> str:
    """Return an entry for justified.toml."""
    names = ("module", "function", "line", "operator", "change", "reason")
    lines = (
        f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in zip(names, (*key, reason), strict=True)
    )
    return "[[survivor]]\n" + "\n".join(lines) + "\n"


def score(mutants: int, verdicts: Sequence[Verdict], justified: Justified) -> Score:
    """Count the verdicts on one module."""
    fates = Counter(verdict.fate for verdict in verdicts)
    lived = [verdict for verdict in verdicts if not verdict.fate.noticed]
    return Score(
        mutants=mutants,
        tried=len(verdicts),
        killed=fates[Fate.KILLED],
        timed_out=fates[Fate.TIMED_OUT],
        survived=len(lived),
        justified=sum(verdict.key in justified for verdict in lived),
    )


def table(scores: Mapping[str, Score]) -> str:
    """Return the scores as a Markdown table."""
    rows = [
        "| module | mutants | tried | killed | timed out | survived | justified | score |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    rows += [
        f"| {name} | {one.mutants} | {one.tried} | {one.killed} | {one.timed_out} | {one.survived} | {one.justified} "
        f"| {one.percent:.0f} % |"
        for name, one in [*scores.items(), ("all", _sum(scores.values()))]
    ]
    return "\n".join(rows)


def table_of(modules: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scores of results.json as a Markdown table."""
    names = [each.name for each in fields(Score)]
    return table(
        {module: Score(**{name: values[name] for name in names}) for module, values in modules.items()}
    )


def with_table(page: str, scores: str) -> str:
    """Return a page with the table between its markers replaced."""
    before, _, rest = page.partition(TABLE_BEGINS)
    _, _, after = rest.partition(TABLE_ENDS)
    return f"{before}{TABLE_BEGINS}\n\n{scores}\n\n{TABLE_ENDS}{after}"


def _sum(scores: Iterable[Score]) -> Score:
    columns = [tuple(asdict(each).values()) for each in scores]
    return (
        Score(*(sum(column) for column in zip(*columns, strict=True))) if columns else Score(0, 0, 0, 0, 0, 0)
    )


@dataclass(slots=True)
class EarlierVerdicts:
    """Verdicts of earlier runs, by the digest of the module's text: a kill holds for as long as that stays."""

    path: Path
    _known: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> EarlierVerdicts:
        """Read the file; empty if there is none."""
        return cls(path, json.loads(path.read_text()) if path.exists() else {})

    def settled(self, mutant: Mutant, digest: str, justified: Justified) -> Verdict | None:
        """Return the earlier verdict if the mutant was noticed then, or its survival is justified."""
        found = self._known.get(_name(mutant.key))
        if found is None or found["digest"] != digest:
            return None
        values = {**found["verdict"], "key": mutant.key, "fate": Fate(found["verdict"]["fate"])}
        verdict = Verdict(**values)
        return verdict if verdict.fate.noticed or mutant.key in justified else None

    def note(self, verdict: Verdict, digest: str) -> None:
        """Keep a verdict, beside those that another run has noted meanwhile."""
        if self.path.exists():
            self._known = json.loads(self.path.read_text())
        self._known[_name(verdict.key)] = {"digest": digest, "verdict": asdict(verdict)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(self._known))
        fresh.replace(self.path)


def _name(key: Key) -> str:
    return json.dumps(key)
