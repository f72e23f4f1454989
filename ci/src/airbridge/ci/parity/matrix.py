"""The compatibility matrix covers what the sources build, and no other protocol."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from airbridge.ci.images.base import PIN_FILE, PINNED
from airbridge.ci.parity.facts import MATRIX, ROOT, Facts
from airbridge.ci.parity.finding import Finding
from airbridge.core.compatibility import Compatible, Matrix, Verdict, parse
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import Versions


def load(facts: Facts) -> Matrix | None:
    """The matrix; None if the file is wrong, which `check` reports."""
    try:
        return parse(facts.checkout.source(MATRIX).text, MATRIX)
    except ConfigurationError:
        return None


def check(facts: Facts) -> Iterator[Finding]:
    """All findings in compatibility.toml."""
    source = facts.checkout.source(MATRIX)
    try:
        matrix = parse(source.text, MATRIX)
    except ConfigurationError as error:
        yield Finding(MATRIX, 1, "matrix-file", str(error).replace("\n", "; "), "must be a valid matrix")
        return
    yield from _current(facts, matrix)
    yield from _protocols(facts, matrix)
    yield from _airflow(facts, matrix)
    yield from _ranges(facts, matrix)
    yield from _unreachable(facts, matrix)


def _entry_line(facts: Facts, index: int, key: str) -> int:
    source, seen = facts.checkout.source(MATRIX), -1
    for number, line in enumerate(source.lines, start=1):
        if line.strip() == "[[compatible]]":
            seen += 1
        if seen == index and (line.strip() == "[[compatible]]" if not key else line.startswith(key)):
            return number
    return 1


def _current(facts: Facts, matrix: Matrix) -> Iterator[Finding]:
    """Check that the builds of these sources may work together, on every supported interpreter."""
    base = PINNED.search(facts.checkout.source(PIN_FILE).text)
    pythons = {f"{facts.oldest_python}.0", *([base["tag"].split("-")[0] + ".0"] if base else [])}
    for python in sorted(pythons):
        worker = Versions(
            airbridge=facts.version,
            airflow=facts.locked_version("apache-airflow-core"),
            task_sdk=facts.locked_version("apache-airflow-task-sdk"),
            python=python,
            protocol=facts.protocol,
        )
        judgement = matrix.judge(facts.version, worker)
        if judgement.verdict is not Verdict.ALLOW:
            actual = f"a control plane and a worker of {facts.version} (Python {python}) may not work together: {judgement.detail}"
            line = next(
                (
                    _entry_line(facts, i, "")
                    for i, e in enumerate(matrix.compatible)
                    if e.applies_to(facts.version)
                ),
                1,
            )
            yield Finding(
                MATRIX, line, "matrix-current", actual, "add an entry for the version that is built here"
            )
            return


def _protocols(facts: Facts, matrix: Matrix) -> Iterator[Finding]:
    supported = facts.supported_protocols
    if facts.protocol not in supported:
        line = facts.protocol_source.line(r"^SUPPORTED_VERSIONS")
        actual = f"SUPPORTED_VERSIONS is {sorted(supported)}"
        yield Finding(
            facts.protocol_source.path,
            line,
            "protocol",
            actual,
            f"must contain PROTOCOL_VERSION, {facts.protocol}",
        )
    for index, entry in _ours(facts, matrix):
        if unknown := sorted(set(entry.protocol) - supported):
            actual = f"allows protocol {', '.join(map(str, unknown))}"
            expected = f"control plane {facts.version} speaks {', '.join(map(str, sorted(supported)))}"
            yield Finding(MATRIX, _entry_line(facts, index, "protocol"), "matrix-protocol", actual, expected)


def _airflow(facts: Facts, matrix: Matrix) -> Iterator[Finding]:
    for index, entry in _ours(facts, matrix):
        for key, actual, name in (
            ("airflow", entry.airflow, "apache-airflow-core"),
            ("task_sdk", entry.task_sdk, "apache-airflow-task-sdk"),
        ):
            wanted = f"=={facts.locked_version(name)}"
            if actual.replace(" ", "") != wanted:
                line = _entry_line(facts, index, key)
                yield Finding(
                    MATRIX, line, "matrix-airflow", f"{key} is {actual}", f'must be "{wanted}", as in uv.lock'
                )


def _ranges(facts: Facts, matrix: Matrix) -> Iterator[Finding]:
    """Ranges end: at the next minor version of AirBridge, which no test has seen, and at the Pythons of the sources."""
    version = Version(facts.version)
    untested = (
        f"{version.major}.{version.minor + 1}.0",
        f"{version.major + 1}.0.0",
        f"{version.major + 99}.0",
    )
    ancient = ("0", *([f"{version.major}.{version.minor - 2}.0"] if version.minor >= 2 else []))
    for index, entry in _ours(facts, matrix):
        if entry.verdict is not Verdict.ALLOW:
            continue
        for key, text in (("control_plane", entry.control_plane), ("worker", entry.worker)):
            allowed = SpecifierSet(text)
            if wide := [each for each in (*untested, *ancient) if allowed.contains(each)]:
                line = _entry_line(facts, index, key)
                expected = f"must end before {untested[0]} and begin at this version or the one before it"
                yield Finding(
                    MATRIX, line, "matrix-range", f"{key} is {text}, which allows {', '.join(wide)}", expected
                )
        if SpecifierSet(entry.python) != SpecifierSet(facts.requires_python):
            line = _entry_line(facts, index, "python")
            yield Finding(
                MATRIX,
                line,
                "matrix-range",
                f"python is {entry.python}",
                f"must be {facts.requires_python}, as in {ROOT}",
            )
        if len(set(entry.protocol)) != len(entry.protocol):
            line = _entry_line(facts, index, "protocol")
            yield Finding(
                MATRIX, line, "matrix-range", f"protocol is {list(entry.protocol)}", "must list each once"
            )
    if matrix.outside is not Verdict.REFUSE:
        line = facts.checkout.source(MATRIX).line(r"^outside\s*=")
        yield Finding(
            MATRIX,
            line,
            "matrix-outside",
            f"outside is {matrix.outside}",
            "must be refuse: what no test has seen gets no work",
        )


def _unreachable(facts: Facts, matrix: Matrix) -> Iterator[Finding]:
    """Entries that never decide: earlier ones meet all pairs that they meet, or no version is in their ranges."""
    for index, entry in enumerate(matrix.compatible):
        before = matrix.compatible[:index]
        if not any(not any(_meets(each, pair) for each in before) for pair in _samples(matrix, entry)):
            line = _entry_line(facts, index, "")
            yield Finding(
                MATRIX,
                line,
                "matrix-unreachable",
                "meets nothing that earlier entries leave",
                "never decides; move it up or remove it",
            )


_Pair = tuple[str, Versions]


def _samples(matrix: Matrix, entry: Compatible) -> Iterator[_Pair]:
    """Pairs that an entry meets: of every field the versions at, before and after each bound that some entry has."""
    fields = ("control_plane", "worker", "airflow", "task_sdk", "python")
    values: list[list[str]] = []
    for field in fields:
        bounds = {
            bound.version.removesuffix(".*")
            for each in matrix.compatible
            for bound in SpecifierSet(getattr(each, field))
        }
        near = sorted({version for bound in bounds for version in _near(bound)})
        allowed = SpecifierSet(getattr(entry, field))
        values.append([version for version in near if allowed.contains(version, prereleases=True)])
    for plane, worker, airflow, sdk, python in product(*values):
        for protocol in entry.protocol:
            versions = Versions(
                airbridge=worker, airflow=airflow, task_sdk=sdk, python=python, protocol=protocol
            )
            yield plane, versions


def _near(bound: str) -> Iterator[str]:
    numbers = [int(number) for number in re.findall(r"\d+", bound)] or [0]
    yield ".".join(map(str, numbers))
    yield ".".join(map(str, [*numbers, 7]))
    for step in (-1, 1):
        if numbers[-1] + step >= 0:
            yield ".".join(map(str, [*numbers[:-1], numbers[-1] + step]))


def _meets(entry: Compatible, pair: _Pair) -> bool:
    return entry.applies_to(pair[0]) and not entry.mismatches(pair[1])


def _ours(facts: Facts, matrix: Matrix) -> Iterator[tuple[int, Compatible]]:
    """Return the entries for the control plane of these sources."""
    return (
        (index, entry) for index, entry in enumerate(matrix.compatible) if entry.applies_to(facts.version)
    )
