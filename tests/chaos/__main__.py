"""``python -m tests.chaos``: seeded histories, checked; or the mutation check. `make chaos` runs both.

    python -m tests.chaos --runs 40              # forty histories, seeds 1 to 40
    python -m tests.chaos --seed 17              # the history of one seed, again
    python -m tests.chaos --mutations            # does the checker find what it must?

Exit code 1: a violation was found (or, of a mutant, none). Each is printed with the seed that makes it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.arena import Arena, Tally, open_arena
from tests.chaos.checker import Kind, Violation, check, count
from tests.chaos.history import History
from tests.chaos.mutations import MUTATIONS, found_by
from tests.chaos.schedule import draw


@dataclass
class Summary:
    """Over all histories."""

    histories: int = 0
    tasks: int = 0
    attempts: int = 0
    fenced: int = 0
    violations: Counter[Kind] = field(default_factory=Counter)
    seeds: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, history: History, violations: list[Violation]) -> None:
        self.histories += 1
        self.tasks += len(history.tasks)
        self.attempts += len(history.items)
        self.fenced += sum(item.outcome == "lost" for item in history.items)
        self.violations += count(violations)
        if violations:
            self.seeds.append(history.schedule.seed)

    def text(self, tally: Tally) -> str:
        faults = ", ".join(f"{name} {times}" for name, times in sorted(tally.faults.items())) or "none"
        kills = ", ".join(f"{name} {times}" for name, times in sorted(tally.kills.items())) or "none"
        others = sum(self.violations.values()) - sum(
            self.violations[kind] for kind in (Kind.LOST, Kind.DOUBLED, Kind.STUCK)
        )
        lines = [
            f"histories           {self.histories} in {self.seconds:.0f} s",
            f"tasks run           {self.tasks}, queued {self.attempts} times, {self.fenced} attempts fenced",
            f"faults              {sum(tally.faults.values())} ({faults})",
            f"kills               {sum(tally.kills.values())} ({kills})",
            f"messages sent again {tally.duplicates}",
            f"results lost        {self.violations[Kind.LOST]}",
            f"results doubled     {self.violations[Kind.DOUBLED]}",
            f"stuck               {self.violations[Kind.STUCK]}",
            f"other violations    {others}",
            f"violations          {sum(self.violations.values())}",
        ]
        if self.seeds:
            lines.append(f"seeds to replay     {' '.join(map(str, self.seeds))}")
        return "\n".join(lines)


def play(arena: Arena, seeds: list[int], keep: Path | None) -> bool:
    """Make the histories of the seeds; return whether nothing was wrong."""
    began = time.monotonic()
    summary = Summary()
    for seed in seeds:
        history = arena.play(draw(seed))
        violations = check(history)
        summary.add(history, violations)
        summary.seconds = time.monotonic() - began
        tell(
            f"seed {seed}: {len(history.tasks)} tasks, {len(violations)} violations, {summary.seconds:.0f} s",
            violations,
        )
        if violations and keep:
            keep_evidence(keep / f"seed-{seed}", arena.evidence(), history, violations)
        for worker in history.ended:
            arena.restart(worker)
    print(summary.text(arena.tally))
    if summary.seeds:
        print("replay: " + "; ".join(f"make chaos CHAOS_SEED={seed}" for seed in summary.seeds))
    return not summary.seeds


def tell(what: str, violations: list[Violation]) -> None:
    """Say on stderr how it goes."""
    for line in (what, *(f"  {violation}" for violation in violations)):
        print(line, file=sys.stderr, flush=True)


def keep_evidence(folder: Path, logs: dict[str, str], history: History, violations: list[Violation]) -> None:
    """Leave all that is known of a history that went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in logs.items():
        (folder / name).write_text(text)
    (folder / "violations.txt").write_text("\n".join(map(str, violations)) + "\n")
    (folder / "history.txt").write_text("\n".join(map(repr, vars(history).items())))
    print(f"  evidence: {folder}", file=sys.stderr)


def mutate(arena: Arena, names: list[str], *, controls: bool) -> bool:
    """Return whether the checker finds something in every mutant, and nothing where nothing was taken out."""
    good = True
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    for mutation in chosen if controls else ():
        violations = check(arena.play(mutation.schedule))
        tell(f"nothing taken out, {mutation.schedule.name}", violations)
        print(f"nothing taken out, {mutation.schedule.name}: {len(violations)} violations")
        good = good and not violations
    for mutation in chosen:
        violations = found_by(arena, mutation)
        tell(f"{mutation.name}, {mutation.schedule.name}", violations[:10])
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(count(violations).items()))
        print(
            f"{mutation.name}, {mutation.schedule.name}: {len(violations)} violations ({kinds or 'NONE FOUND'})"
        )
        good = good and bool(violations)
    return good


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=0, help="how many histories")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--seed", type=int, help="the history of this seed alone")
    parser.add_argument("--mutations", action="store_true", help="does the checker find what it must?")
    parser.add_argument("--controls", action="store_true", help="the mutants' histories without mutants, too")
    parser.add_argument("--mutant", action="append", default=[], help="only this one")
    parser.add_argument("--show", action="store_true", help="print the schedule of --seed and stop")
    parser.add_argument("--keep", type=Path, help="folder for the evidence of histories that went wrong")
    asked = parser.parse_args()
    if asked.show:
        print(json.dumps(draw(asked.seed), default=vars, indent=1))
        return
    last = asked.first_seed + asked.runs
    seeds = [asked.seed] if asked.seed is not None else [*range(asked.first_seed, last)]
    with open_arena() as arena:
        good = play(arena, seeds, asked.keep) if seeds else True
        if asked.mutations:
            good = mutate(arena, asked.mutant, controls=asked.controls) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
