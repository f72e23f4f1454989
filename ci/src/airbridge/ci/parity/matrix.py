"""The compatibility matrix covers what the sources build, and no other protocol."""

from __future__ import annotations

from collections.abc import Iterator

from airbridge.ci.images.base import PIN_FILE, PINNED
from airbridge.ci.parity.facts import MATRIX, Facts
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


def _unreachable(facts: Facts, matrix: Matrix) -> Iterator[Finding]:
    for index, entry in enumerate(matrix.compatible):
        same = [
            e for e in matrix.compatible[:index] if e.model_copy(update={"verdict": entry.verdict}) == entry
        ]
        if same:
            line = _entry_line(facts, index, "")
            yield Finding(
                MATRIX,
                line,
                "matrix-unreachable",
                "repeats an earlier entry",
                "never decides; remove one of the two",
            )


def _ours(facts: Facts, matrix: Matrix) -> Iterator[tuple[int, Compatible]]:
    """Return the entries for the control plane of these sources."""
    return (
        (index, entry) for index, entry in enumerate(matrix.compatible) if entry.applies_to(facts.version)
    )
