"""pytest plugins for the test runs: one notes the lines that each test runs, one notes what failed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import coverage
import pytest

TEST_VARIABLE = "AIRBRIDGE_MUTATION_TEST"
FILES_VARIABLE = "AIRBRIDGE_MUTATION_FILES"
DATA_VARIABLE = "AIRBRIDGE_MUTATION_DATA"
STARTUP = Path(__file__).parent / "startup"


def measuring(data: str, files: list[str], context: str | None = None) -> coverage.Coverage:
    """Return a coverage measurement of these files."""
    # Not "greenlet": the modules under test run in threads, and with an entry for each of SQLAlchemy's greenlets the
    # collection of garbage at the end of a gateway's tests did not end.
    return coverage.Coverage(
        data_file=data,
        data_suffix=True,
        include=files,
        concurrency=["thread"],
        context=context,
        config_file=False,
        messages=False,
    )


class Lines:
    """Notes the lines of some files that each test runs, in this process and in those that it starts."""

    def __init__(self, data: Path, files: list[str]) -> None:
        os.environ[DATA_VARIABLE], os.environ[FILES_VARIABLE] = str(data), os.pathsep.join(files)
        os.environ["PYTHONPATH"] = f"{STARTUP}{os.pathsep}{os.environ['PYTHONPATH']}"
        self._coverage = measuring(str(data), files)
        self._coverage.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Attribute lines to the test that runs now."""
        os.environ[TEST_VARIABLE] = item.nodeid
        self._coverage.switch_context(item.nodeid)
        return (yield)

    def save(self) -> None:
        """Write what was noted."""
        self._coverage.stop()
        self._coverage.save()


class Reports:
    """Notes how long each test took, and which failed."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.failed: list[str] = []
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a phase of a test."""
        self.seconds[report.nodeid] += report.duration
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)
        if report.skipped:
            self.skipped.append(report.nodeid)
