"""``python -m tests.mutation``: put faults into modules, one at a time, and see whether the tests notice.

    python -m tests.mutation --sample 8                     # eight mutants of each module
    python -m tests.mutation --sample all --modules outbox  # every mutant of one module
    python -m tests.mutation --wide                         # with every test that reaches a mutant's line
    python -m tests.mutation --resume                       # what survived the last time without a reason, or was not tried

Exit code 1: a mutant survived and is not justified in justified.toml. Exit code 2: the arguments are wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Queue
from typing import Final

from tests.mutation import reach
from tests.mutation.bench import Bench, directory_for_benches, open_bench
from tests.mutation.fork_server import TIMED_OUT
from tests.mutation.operators import Enums, Mutant, enums_in, mutants
from tests.mutation.reach import Reach
from tests.mutation.targets import SUITES, TARGETS, Target, chosen, focus_of
from tests.mutation.verdicts import (
    EarlierVerdicts,
    Fate,
    Justified,
    Score,
    Verdict,
    entry_text,
    score,
    table,
    table_of,
    with_table,
)

REPOSITORY: Final = Path(__file__).parents[2]
HERE: Final = Path(__file__).parent
STATE: Final = REPOSITORY / ".mutants"
RESULTS: Final = HERE / "results.json"
README: Final = HERE / "README.md"
JUSTIFIED: Final = HERE / "justified.toml"

BUDGET_SECONDS: Final = 30.0
"""Greatest total duration, without a fault, of the tests that are run against one mutant."""
SLACK_SECONDS: Final = 30.0
"""Start of a test run, on a loaded machine."""
OVER_SOCKETS: Final = (
    "tests/integration/gateway",
    "tests/integration/partition",
    "tests/integration/edge_worker",
)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    targets: tuple[Target, ...]
    sample: int | None
    """Mutants of each module; None for all."""
    seed: int
    jobs: int
    resume: bool
    suites: tuple[str, ...]
    """Directories or files of the tests to run."""


@dataclass(slots=True)
class Campaign:
    """One run over a sample of mutants."""

    options: Options
    justified: Justified
    earlier: EarlierVerdicts
    reach: Reach
    benches: Queue[Bench]
    verdicts: dict[str, list[Verdict]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: int = 0

    def run(self, tries: Sequence[tuple[Target, Mutant]]) -> None:
        """Try every mutant."""
        with ThreadPoolExecutor(self.options.jobs) as pool:
            for verdict in pool.map(lambda each: self._settle(*each, len(tries)), tries):
                self.verdicts.setdefault(verdict.key[0], []).append(verdict)

    def _settle(self, target: Target, mutant: Mutant, total: int) -> Verdict:
        stamp = _stamp(target)
        known = self.earlier.settled(mutant, stamp, self.justified) if self.options.resume else None
        verdict = known or self._try(target, mutant)
        with self._lock:
            self._done += 1
            if known is None:
                self.earlier.note(verdict, stamp)
                say(f"[{self._done}/{total}] {_told(mutant, verdict, mutant.key in self.justified)}")
        return verdict

    def _try(self, target: Target, mutant: Mutant) -> Verdict:
        tests = self.reach.tests_of(mutant, target, BUDGET_SECONDS)
        if not tests:
            return Verdict(mutant.key, Fate.UNREACHED, mutant.line, 0, 0.0)
        bench = self.benches.get()
        try:
            bench.prepare([test for test, _ in tests])
            with bench.tree.with_fault(target.path, mutant):
                return _verdict(bench, mutant, tests)
        finally:
            self.benches.put(bench)


def _verdict(bench: Bench, mutant: Mutant, tests: list[tuple[str, float]]) -> Verdict:
    expected, longest = sum(seconds for _, seconds in tests), max(seconds for _, seconds in tests)
    limits = (2 * expected + SLACK_SECONDS, 3 * longest + SLACK_SECONDS)
    run = bench.run([test for test, _ in tests], *limits)
    if run.exit_code == TIMED_OUT:
        # Perhaps the machine was busy: a mutant that makes the tests slow or endless does so with twice the time too.
        run = bench.run([test for test, _ in tests], *(2 * each for each in limits))
    killer = run.failed[0] if run.failed else ""
    if killer.startswith(OVER_SOCKETS):
        # Such a test may fail without the mutant's help on a loaded machine: the kill counts if it fails again.
        again = bench.run([killer], *limits)
        if again.exit_code == 0:
            others = [test for test, _ in tests if test != killer]
            run = bench.run(others, *limits) if others else again
            killer = run.failed[0] if run.failed else ""
    return Verdict(mutant.key, _fate(run.exit_code), mutant.line, len(tests), round(run.seconds, 1), killer)


def _fate(exit_code: int) -> Fate:
    if exit_code == 0:
        return Fate.SURVIVED
    # Anything else: a failed test, a module that cannot be imported (2, 4), a crash.
    return Fate.TIMED_OUT if exit_code == TIMED_OUT else Fate.KILLED


def _told(mutant: Mutant, verdict: Verdict, justified: bool) -> str:
    fate = f"{verdict.fate} (justified)" if justified and not verdict.fate.noticed else str(verdict.fate)
    change = f"{mutant.before} -> {mutant.after}"
    return (
        f"{fate:<11} {verdict.seconds:5.1f} s {mutant.target}:{mutant.line} {mutant.function}: {mutant.operator}: "
        f"{change[:100]} {verdict.killer.rpartition('/')[2]}"
    )


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def _stamp(target: Target) -> str:
    return hashlib.sha256((REPOSITORY / target.path).read_bytes()).hexdigest()


def _sampled(found: Sequence[Mutant], options: Options) -> list[Mutant]:
    """Return a sample that an edit of the module changes little: by the digest of each mutant's identity."""
    if options.sample is None or len(found) <= options.sample:
        return list(found)

    def rank(mutant: Mutant) -> str:
        return hashlib.sha256(f"{options.seed} {mutant.key}".encode()).hexdigest()

    picked = {id(each) for each in sorted(found, key=rank)[: options.sample]}
    return [each for each in found if id(each) in picked]


def _enums() -> Enums:
    return enums_in([path.read_text() for path in sorted(REPOSITORY.glob("*/src/**/*.py"))])


def main(arguments: Sequence[str]) -> int:
    """Run, write the results and return the exit code."""
    options = _options(arguments)
    enums = _enums()
    all_of = {
        target.name: mutants(target.name, (REPOSITORY / target.path).read_text(), enums)
        for target in options.targets
    }
    tries = [
        (target, mutant) for target in options.targets for mutant in _sampled(all_of[target.name], options)
    ]
    began = time.monotonic()
    with ExitStack() as stack:
        benches: Queue[Bench] = Queue()
        for _ in range(options.jobs):
            directory = stack.enter_context(directory_for_benches())
            benches.put(stack.enter_context(open_bench(REPOSITORY, Path(directory))))
        first = benches.get()
        reached = reach.measure(REPOSITORY, first, options.suites, STATE / "reach.json", say)
        benches.put(first)
        campaign = Campaign(
            options,
            Justified.read(JUSTIFIED),
            EarlierVerdicts.read(STATE / "verdicts.json"),
            reached,
            benches,
        )
        campaign.run(tries)
    counts = {name: len(found) for name, found in all_of.items()}
    return _report(campaign, counts, time.monotonic() - began)


def _report(campaign: Campaign, counts: dict[str, int], seconds: float) -> int:
    scores = {
        name: score(counts[name], campaign.verdicts.get(name, []), campaign.justified) for name in counts
    }
    tried = [verdict for verdicts in campaign.verdicts.values() for verdict in verdicts]
    lived = [verdict for verdict in tried if not verdict.fate.noticed]
    unjustified = [verdict for verdict in lived if verdict.key not in campaign.justified]
    _write_results(campaign.options, scores, lived, campaign.justified, seconds)
    print(table(scores))
    for key in campaign.justified.unused(tried):
        say(f"justified.toml: the tests notice this one now, the entry can go: {' | '.join(key)}")
    if unjustified:
        print(
            f"\n{len(unjustified)} survived; kill them with a test, or give the reason in {JUSTIFIED.name}:\n"
        )
        print("\n".join(entry_text(verdict.key) for verdict in unjustified))
    return 1 if unjustified else 0


def _write_results(
    options: Options, scores: dict[str, Score], lived: list[Verdict], justified: Justified, seconds: float
) -> None:
    """Write results.json, and its table into README.md; modules that were not chosen keep what stands there."""
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"modules": {}}
    chosen_now = {
        name: {
            "sample": options.sample or "all",
            **asdict(one),
            "percent": round(one.percent, 1),
            "survivors": [_survivor(each, justified) for each in lived if each.key[0] == name],
        }
        for name, one in scores.items()
    }
    every = {**before["modules"], **chosen_now}
    ordered = {target.name: every[target.name] for target in TARGETS if target.name in every}
    results = {"seed": options.seed, "seconds": round(seconds), "modules": ordered}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    README.write_text(with_table(README.read_text(), table_of(ordered)))


def _survivor(verdict: Verdict, justified: Justified) -> dict[str, str]:
    _, function, line, operator, change = verdict.key
    reason = justified.reasons.get(verdict.key, "")
    return {"function": function, "line": line, "operator": operator, "change": change, "reason": reason}


def _options(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description="Mutation testing.")
    parser.add_argument("--modules", default="", help="a comma-separated list, such as outbox,claims")
    parser.add_argument("--sample", default="8", help="mutants of each module, or 'all'")
    parser.add_argument("--seed", type=int, default=13, help="picks the sample")
    parser.add_argument("--jobs", type=int, default=1, help="how many mutants are tried at once")
    parser.add_argument(
        "--resume", action="store_true", help="do not try again what was killed or justified before"
    )
    parser.add_argument(
        "--wide", action="store_true", help="also run tests beyond the modules' own that reach a line"
    )
    parser.add_argument("--tests", nargs="*", help="directories or files of the tests to run instead")
    found = parser.parse_args(arguments)
    try:
        sample = None if found.sample == "all" else int(found.sample)
        targets = chosen(found.modules)
        tests = found.tests or (SUITES if found.wide else focus_of(targets))
        return Options(targets, sample, found.seed, found.jobs, found.resume, tuple(tests))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
