"""Run a named body of evidence: ``python ci/scripts/proof.py NAME PATH...``. Each PATH is a test file or a node of one.

The tests run one after the other in one pytest session, without second attempts. The last line is
``proof-NAME: N checks, F failed``; the exit status is 1 if F is not 0 or if no check ran.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

REPORTS = Path(".reports")


def main(arguments: list[str] | None = None) -> int:
    """Run the tests and print the closing line; return the exit status."""
    parser = argparse.ArgumentParser(description="Run a named body of evidence.")
    parser.add_argument("name")
    parser.add_argument("paths", nargs="+", metavar="PATH")
    given = parser.parse_args(arguments)
    REPORTS.mkdir(exist_ok=True)
    report = REPORTS / f"proof-{given.name}.xml"
    report.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "0",
        "-q",
        "--no-retries",
        "--slow",
        f"--junit-xml={report}",
        *given.paths,
    ]
    # The paths come from a make target of this repository.
    status = subprocess.run(command, check=False).returncode
    checks, failed = outcomes(report)
    # A usage or internal error of pytest leaves no failed check, and is a failure all the same.
    if status not in {0, 1}:
        failed = max(failed, 1)
    print(f"proof-{given.name}: {checks} checks, {failed} failed")
    return 0 if checks and not failed else 1


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
