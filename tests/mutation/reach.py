"""Coverage of lines by tests, and the tests' durations: measured once a test file, and kept until it changes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tests.mutation.bench import Bench
from tests.mutation.operators import Mutant
from tests.mutation.targets import SUITES, TARGETS, Target
from tests.mutation.tree import digest

FILE_TIMEOUT_SECONDS: Final = 600.0
TEST_TIMEOUT_SECONDS: Final = 120.0


@dataclass(slots=True)
class MeasuredFile:
    """Measurements of one test file."""

    digest: str
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each test that passes."""
    lines: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Lines by test, by path of the module."""
    failed: list[str] = field(default_factory=list)
    """Tests that fail without any fault: they are left out."""


class Reach:
    """Tests by the lines that they run."""

    def __init__(self, files: Mapping[str, MeasuredFile]) -> None:
        self.files = files

    def tests_of(self, mutant: Mutant, target: Target, budget_seconds: float) -> list[tuple[str, float]]:
        """Return tests that reach a mutant's lines, with their durations: the most promising first, within the budget."""
        reaching = {name: self._reaching(name, mutant, target) for name in self.files}
        ordered = sorted(
            (name for name in reaching if reaching[name]), key=lambda name: self._rank(name, target)
        )
        chosen: list[tuple[str, float]] = []
        spent = 0.0
        for name in ordered:
            for test, seconds in sorted(reaching[name].items(), key=lambda pair: (pair[1], pair[0])):
                if chosen and name not in target.focus and spent + seconds > budget_seconds:
                    break
                chosen.append((test, seconds))
                spent += seconds
        return chosen

    def _reaching(self, name: str, mutant: Mutant, target: Target) -> dict[str, float]:
        first, last = mutant.lines
        file = self.files[name]
        lines = file.lines.get(target.path, {})
        found = {
            test
            for test, run in lines.items()
            if mutant.at_import or any(first <= line <= last for line in run)
        }
        if mutant.at_import and name in target.focus:
            # A test may use what the import made, such as a constant, and run no line of the module itself.
            found |= file.seconds.keys()
        return {test: file.seconds[test] for test in found if test in file.seconds}

    def _rank(self, name: str, target: Target) -> tuple[int, int, float]:
        focus = target.focus.index(name) if name in target.focus else len(target.focus)
        suite = next((number for number, suite in enumerate(SUITES) if name.startswith(suite)), len(SUITES))
        return focus, suite, min(self.files[name].seconds.values(), default=0.0)


def measure(
    repository: Path, bench: Bench, suites: Sequence[str], cache: Path, say: Callable[[str], None]
) -> Reach:
    """Measure the test files that are new, that changed as the sources did, or in which a test failed the last time."""
    known = _load(cache)
    sources = digest(repository, *(target.path for target in TARGETS))
    found: dict[str, MeasuredFile] = {}
    for name in _test_files(repository, suites):
        stamp = digest(repository, name) + sources
        if name in known and known[name].digest == stamp and not known[name].failed:
            found[name] = known[name]
            continue
        found[name] = _measure(bench, name, stamp)
        say(_summary(name, found[name]))
        _save(cache, {**_load(cache), **found})
    return Reach(found)


def _summary(name: str, file: MeasuredFile) -> str:
    failing = f"; left out, they fail without a fault: {', '.join(file.failed)}" if file.failed else ""
    return f"measured {name}: {len(file.seconds)} tests, {sum(file.seconds.values()):.1f} s{failing}"


def _test_files(repository: Path, suites: Sequence[str]) -> list[str]:
    found = [path for suite in suites for path in _below(repository / suite)]
    return [str(path.relative_to(repository)) for path in found]


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("test_*.py"))


def _measure(bench: Bench, name: str, stamp: str) -> MeasuredFile:
    bench.prepare([name])
    directory = bench.directory / "coverage"
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    data = directory / "data"
    files = [str(bench.tree.root / target.path) for target in TARGETS]
    run = bench.run(
        [name],
        FILE_TIMEOUT_SECONDS,
        TEST_TIMEOUT_SECONDS,
        stop_at_first=False,
        record=str(data),
        files=files,
    )
    passed = run.durations.keys() - set(run.failed) - set(run.skipped)
    measured = MeasuredFile(stamp, {test: run.durations[test] for test in sorted(passed)}, {}, run.failed)
    if run.exit_code not in {0, 1, 5}:
        measured.failed.append(f"{name} (exit code {run.exit_code})")
    for each in directory.glob("data*"):
        _add(measured, each, bench.tree.root)
    return measured


def _add(file: MeasuredFile, data: Path, root: Path) -> None:
    """Add the lines that one process ran."""
    from coverage import CoverageData  # installed for mutation testing only

    found = CoverageData(basename=str(data))
    found.read()
    for path in found.measured_files():
        lines_of = file.lines.setdefault(str(Path(path).relative_to(root)), {})
        for line, tests in found.contexts_by_lineno(path).items():
            for test in tests:
                if test:
                    lines_of.setdefault(test, []).append(line)


def _load(cache: Path) -> dict[str, MeasuredFile]:
    if not cache.exists():
        return {}
    return {name: MeasuredFile(**values) for name, values in json.loads(cache.read_text()).items()}


def _save(cache: Path, files: Mapping[str, MeasuredFile]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    fresh = cache.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({name: asdict(file) for name, file in files.items()}))
    fresh.replace(cache)
