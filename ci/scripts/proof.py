"""Run a named body of evidence: ``python ci/scripts/proof.py NAME PATH... [--infra PATH...]``. Each PATH is a test file or a node of one.

The tests run one after the other in one pytest session, without second attempts; those of `--infra` beside it, in a session of their own in
the infrastructure's environment, whose output follows. The last line is
``proof-NAME: N checks, F failed``; the exit status is 1 if F is not 0 or if a session ran no check.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

REPORTS = Path(".reports")
OPTIONS = ("-n", "0", "--no-retries", "--slow")
# CDK for Terraform is in an environment of its own, which has none of the options above.
INFRA = ("infra/.venv/bin/python", "-m", "pytest", "--confcutdir=tests/infra")


def main(arguments: list[str] | None = None) -> int:
    """Run the tests and print the closing line; return the exit status."""
    parser = argparse.ArgumentParser(description="Run a named body of evidence.")
    parser.add_argument("name")
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--infra", nargs="+", default=[], metavar="PATH")
    given = parser.parse_args(arguments)
    with ThreadPoolExecutor() as beside:
        # Most of what the others do is to wait.
        infra = (
            beside.submit(run_quietly, f"{given.name}-infra", [*INFRA, *given.infra]) if given.infra else None
        )
        sessions = [run(given.name, [sys.executable, "-m", "pytest", *OPTIONS, *given.paths])]
        if infra is not None:
            counts, output = infra.result()
            print(output, end="", flush=True)
            sessions.append(counts)
    checks, failed = (sum(counts) for counts in zip(*sessions, strict=True))
    print(f"proof-{given.name}: {checks} checks, {failed} failed")
    # A session that ran nothing leaves out its part of the evidence.
    return 0 if all(ran for ran, _ in sessions) and not failed else 1


def run_quietly(name: str, command: list[str]) -> tuple[tuple[int, int], str]:
    """Run a session of pytest; return how many checks ran and how many failed, and what it printed."""
    with tempfile.TemporaryFile("w+") as output:
        counts = run(name, command, output)
        output.seek(0)
        return counts, output.read()


def run(name: str, command: list[str], output: IO[str] | None = None) -> tuple[int, int]:
    """Run a session of pytest; return how many checks ran and how many failed."""
    REPORTS.mkdir(exist_ok=True)
    report = REPORTS / f"proof-{name}.xml"
    report.unlink(missing_ok=True)
    # The paths come from a make target of this repository.
    words = [*command, "-q", f"--junit-xml={report}"]
    status = subprocess.run(words, check=False, stdout=output, stderr=output).returncode
    checks, failed = outcomes(report)
    # A usage or internal error of pytest leaves no failed check, and is a failure all the same.
    return checks, failed if status in {0, 1} else max(failed, 1)


def outcomes(report: Path) -> tuple[int, int]:
    """Return how many checks ran and how many failed, by a JUnit report. Skipped tests are not checks."""
    if not report.exists():
        return 0, 0
    # pytest wrote the file a moment ago: it is trusted input.
    suites = ElementTree.parse(report).getroot().iter("testsuite")  # noqa: S314
    counts = [
        {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
        for suite in suites
    ]
    failed = sum(each["failures"] + each["errors"] for each in counts)
    return sum(each["tests"] - each["skipped"] for each in counts), failed


if __name__ == "__main__":
    sys.exit(main())
