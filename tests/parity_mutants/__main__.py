"""Plant every mutant and say which gate finds it: ``python -m tests.parity_mutants [--sample N] [--seed S]``."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.parity_mutants import hostile, places, reasons
from tests.parity_mutants.gates import Gates
from tests.parity_mutants.overlay import released_project
from tests.parity_mutants.places import Mutant


def run(sample: int | None, seed: int, *, verbose: bool = False) -> tuple[int, list[Mutant], list[Mutant]]:
    """Return how many mutants were planted, the survivors, and those of them without a reason."""
    with tempfile.TemporaryDirectory() as scratch:
        project = released_project(Path(scratch) / "project")
        gates = Gates.over(project)
        mutants = [*hostile.generate(project), *places.generate(project)]
        if sample is not None:
            fixed = [each for each in mutants if each.kind.startswith("hostile")]
            rest = [each for each in mutants if not each.kind.startswith("hostile")]
            mutants = fixed + random.Random(seed).sample(rest, min(sample, len(rest)))
        survivors, found_by = [], Counter[str]()
        for each in mutants:
            found = gates.findings(each.changes)
            if verbose and found:
                gate, finding = found[0]
                print(f"{each.path}:{each.line}: {each.kind}: {each.shown}\n    {gate}: {finding}")
            if not found:
                survivors.append(each)
                why = reasons.of(each) or "no reason is known"
                print(f"{each.path}:{each.line}: {each.kind}: {each.shown}: survived: {why}", flush=True)
            found_by.update({gate for gate, _ in found})
        print(
            f"found by: {', '.join(f'{name} {count}' for name, count in found_by.most_common())}",
            file=sys.stderr,
        )
        return len(mutants), survivors, [each for each in survivors if reasons.of(each) is None]


def main() -> int:
    """Print survivors and the closing line; return the exit status."""
    parser = argparse.ArgumentParser(description="Mutation testing of parity.")
    parser.add_argument("--sample", type=int, help="so many mutants of the places, beside all hostile ones")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--verbose", action="store_true", help="show what finds each mutant")
    given = parser.parse_args()
    planted, survivors, unexplained = run(given.sample, given.seed, verbose=given.verbose)
    print(f"{planted} mutants, {len(survivors)} survived")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
