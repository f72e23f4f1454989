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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.arena import Arena, Tally, open_arena
from tests.chaos.checker import check, count
from tests.chaos.history import History
from tests.chaos.mutations import MUTATIONS, Mutation, found_by
from tests.chaos.schedule import draw
from tests.chaos.violations import Kind, Violation


@dataclass(frozen=True)
class Line:
    """One history in numbers."""

    seed: int
    seconds: float
    tasks: int
    attempts: int
    fenced: int
    faults: dict[str, int]
    kills: dict[str, int]
    duplicates: int
    violations: dict[str, int]


def line(history: History, violations: list[Violation], done: Tally, seconds: float) -> Line:
    """Return the figures of a history."""
    return Line(
        seed=history.schedule.seed,
        seconds=round(seconds, 1),
        tasks=len(history.tasks),
        attempts=len(history.items),
        fenced=sum(item.outcome == "lost" for item in history.items),
        faults=dict(done.faults),
        kills=dict(done.kills),
        duplicates=done.duplicates,
        violations={str(kind): times for kind, times in count(violations).items()},
    )


def summary(lines: Sequence[Line]) -> str:
    """Return the figures of all histories as text."""
    faults, kills, wrong = (
        _sum(getattr(one, name) for one in lines) for name in ("faults", "kills", "violations")
    )
    counted = (Kind.LOST, Kind.DOUBLED, Kind.STUCK)
    rows = {
        "histories": f"{len(lines)} in {sum(one.seconds for one in lines):.0f} s",
        "tasks run": f"{sum(one.tasks for one in lines)}, queued {sum(one.attempts for one in lines)} times, "
        f"{sum(one.fenced for one in lines)} attempts fenced",
        "faults": f"{faults.total()} ({_listed(faults)})",
        "kills": f"{kills.total()} ({_listed(kills)})",
        "messages sent again": sum(one.duplicates for one in lines),
        "results lost": wrong[Kind.LOST],
        "results doubled": wrong[Kind.DOUBLED],
        "stuck": wrong[Kind.STUCK],
        "other violations": wrong.total() - sum(wrong[kind] for kind in counted),
        "violations": wrong.total(),
    }
    return "\n".join(f"{name:<20} {value}" for name, value in rows.items())


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {times}" for name, times in sorted(counts.items())) or "none"


def play(arena: Arena, seeds: list[int], keep: Path | None, tally: Path | None) -> bool:
    """Make the histories of the seeds; return whether nothing was wrong."""
    lines = read(tally) if tally else []
    for seed in seeds:
        began = time.monotonic()
        arena.tally = Tally()
        history = arena.play(draw(seed))
        violations = check(history)
        made = line(history, violations, arena.tally, time.monotonic() - began)
        lines.append(made)
        report(
            f"seed {seed}: {made.tasks} tasks, {len(violations)} violations, {made.seconds:.0f} s", violations
        )
        if tally:
            with tally.open("a") as file:
                file.write(json.dumps(vars(made)) + "\n")
        if violations and keep:
            keep_evidence(keep / f"seed-{seed}", arena.evidence(), history, violations)
        for worker in history.ended:
            arena.restart(worker)
    print(summary(lines))
    wrong = [one.seed for one in lines if one.violations]
    if wrong:
        print("replay: " + "; ".join(f"make chaos CHAOS_SEED={seed}" for seed in wrong))
    return not wrong


def read(tally: Path) -> list[Line]:
    """Read the lines of earlier histories."""
    return [Line(**json.loads(text)) for text in tally.read_text().splitlines()] if tally.exists() else []


def report(what: str, violations: list[Violation]) -> None:
    """Print progress on stderr."""
    for line in (what, *(f"  {violation}" for violation in violations)):
        print(line, file=sys.stderr, flush=True)


def keep_evidence(folder: Path, logs: dict[str, str], history: History, violations: list[Violation]) -> None:
    """Write logs, records and violations of a faulty history to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in logs.items():
        (folder / name).write_text(text)
    (folder / "violations.txt").write_text("\n".join(map(str, violations)) + "\n")
    (folder / "history.txt").write_text("\n".join(map(repr, vars(history).items())))
    print(f"  evidence: {folder}", file=sys.stderr)


def control(arena: Arena, chosen: Sequence[Mutation]) -> bool:
    """Return whether the checker finds nothing in the mutants' histories without them."""
    good = True
    for mutation in {each.schedule.seed: each for each in chosen}.values():
        schedule = mutation.schedule
        # Of a broken gateway, the workers' settings belong to the history; else they are what is broken.
        patient = mutation.worker_env if mutation.gateway else {}
        if patient:
            arena.restart_workers(patient)
        violations = check(arena.play(schedule))
        if patient:
            arena.restart_workers({})
        report(f"nothing taken out, {schedule.name}", violations)
        print(f"nothing taken out, {schedule.name}: {len(violations)} violations", flush=True)
        good = good and not violations
    return good


def mutate(arena: Arena, names: list[str], *, controls: bool) -> bool:
    """Return whether the checker finds a violation in every mutant, and none in the controls."""
    good = True
    chosen = [each for each in MUTATIONS if not names or any(name in each.name for name in names)]
    if not chosen:
        sys.exit(
            f"no mutant is named {', '.join(names)}; there are: {', '.join(one.name for one in MUTATIONS)}"
        )
    if controls:
        good = control(arena, chosen)
    for mutation in chosen:
        violations = found_by(arena, mutation)
        report(f"{mutation.name}, {mutation.schedule.name}", violations[:10])
        kinds = ", ".join(f"{kind} {times}" for kind, times in sorted(count(violations).items()))
        print(
            f"{mutation.name}, {mutation.schedule.name}: {len(violations)} violations ({kinds or 'NONE FOUND'})",
            flush=True,
        )
        found = {violation.kind for violation in violations}
        good = good and (mutation.finds in found if mutation.finds else bool(found))
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
    parser.add_argument("--mutant", action="append", default=[], help="only those with this in their name")
    parser.add_argument("--show", action="store_true", help="print the schedule of --seed and stop")
    parser.add_argument(
        "--tally", type=Path, help="file that numbers are added to, for a long run made in parts"
    )
    parser.add_argument("--keep", type=Path, help="folder for the evidence of histories that went wrong")
    asked = parser.parse_args()
    if asked.show:
        print(json.dumps(draw(asked.seed), default=vars, indent=1))
        return
    last = asked.first_seed + asked.runs
    seeds = [asked.seed] if asked.seed is not None else [*range(asked.first_seed, last)]
    with open_arena() as arena:
        good = play(arena, seeds, asked.keep, asked.tally) if seeds else True
        if asked.mutations:
            good = mutate(arena, asked.mutant, controls=asked.controls) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
