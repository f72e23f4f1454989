"""Pytest plugin: a second attempt for a failed test, under the same conditions, counted and on record.

``pytest --retries 2`` runs a failed test once more at once, in the same session and the same worker, after the fixtures of the
first attempt were torn down as they always are. Fixtures of a wider scope stay unless they failed themselves. A run in which
more tests than that needed a second attempt fails, counted over all xdist workers, and so does a run that lost a worker.
Each second attempt is printed at the end of the run and kept in the JUnit XML, as the property ``first_attempt``.

pytest-rerunfailures has no limit for a run, leaves no trace in the JUnit XML, and runs its second attempt without the timer
of pytest-timeout, which a failure has cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from _pytest.runner import runtestprotocol

FIRST_ATTEMPT = "first_attempt"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--retries`` and ``--no-retries``."""
    group = parser.getgroup("retries")
    group.addoption(
        "--retries",
        type=int,
        default=0,
        metavar="N",
        help="retry up to N failed tests of a run, once each (0)",
    )
    group.addoption(
        "--no-retries", dest="retries", action="store_const", const=0, help="the same as --retries 0"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the two halves: workers make second attempts, the controller counts them."""
    config.pluginmanager.register(SecondAttempts(config.option.retries), "second-attempts")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(RetryRecord(config.option.retries), "retry-record")


class SecondAttempts:
    """Makes the second attempts of one process; without xdist that is the whole run."""

    def __init__(self, allowed: int) -> None:
        self._left = allowed
        self._attempt: list[pytest.TestReport] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test, once more if it failed, and report the last attempt."""
        if self._attempt is not None:
            self._attempt.extend(runtestprotocol(item, nextitem=nextitem, log=False))
            return True
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, nextitem):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        properties = list(item.user_properties)
        first = runtestprotocol(item, nextitem=nextitem, log=False)
        failed = [report for report in first if report.failed]
        if not failed or not self._left or item.session.shouldstop or item.session.shouldfail:
            return first
        self._left -= 1
        _forget_attempt(item)
        item.user_properties[:] = [*properties, (FIRST_ATTEMPT, _as_text(failed))]
        return self._second_attempt(item, nextitem)

    def _second_attempt(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        # Through the hook, so that its wrappers (time-out, warnings, assertion rewriting) hold for this attempt too:
        # pytest-timeout cancels a test's timer at the first exception.
        self._attempt = reports = []
        try:
            item.ihook.pytest_runtest_protocol(item=item, nextitem=nextitem)
        finally:
            self._attempt = None
        return reports


def _forget_attempt(item: pytest.Item) -> None:
    """Remove what pytest keeps on an item between attempts: output, instance, and the errors of failed fixtures."""
    item._report_sections.clear()
    if not isinstance(item, pytest.Function):
        return
    item._initrequest()
    for name in ("_instance", "_obj"):
        # Set anew at the next access, but for an item that was collected with a callable of its own.
        if item.cls is not None:
            vars(item).pop(name, None)
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for definition in definitions:
            if definition.cached_result is not None and definition.cached_result[2] is not None:
                definition.finish(item._request)


def _as_text(failed: Sequence[pytest.TestReport]) -> str:
    parts = []
    for report in failed:
        parts.append(f"failed in {report.when}:\n{report.longreprtext}")
        parts += [f"{title}:\n{content}" for title, content in report.sections]
    return "\n\n".join(parts)


class RetryRecord:
    """Counts second attempts and lost workers over the whole run, and decides whether it may pass."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._retried: dict[str, str] = {}
        self._lost: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a second attempt."""
        if text := dict(report.user_properties).get(FIRST_ATTEMPT):
            self._retried[report.nodeid] = str(text)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, object] | None:
        """Show an R before the outcome of a second attempt, and count it in the closing line."""
        if report.when == "setup" and report.passed and FIRST_ATTEMPT in dict(report.user_properties):
            return "retried", "R", ("RETRIED", {"yellow": True})
        return None

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: object, error: object) -> None:
        """Note a worker that ended with an error; xdist itself ignores one that ran no test at that time."""
        if error:
            self._lost.append(str(error))

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Fail the run that retried too often, or lost a worker."""
        if exitstatus == pytest.ExitCode.OK and (len(self._retried) > self._allowed or self._lost):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print each first attempt, and why the run fails if it does for their number."""
        if self._retried:
            terminalreporter.section(f"second attempts: {len(self._retried)}", yellow=True)
        for nodeid, text in self._retried.items():
            terminalreporter.write_line(f"{nodeid} was tried again, its first attempt", yellow=True)
            terminalreporter.write_line(text)
        if len(self._retried) > self._allowed:
            terminalreporter.write_line(
                f"FAILED: {len(self._retried)} tests were tried again, at most {self._allowed} may be",
                red=True,
            )
            # Once more, by name: what precedes is long, and a log is read from its end.
            for nodeid in self._retried:
                terminalreporter.write_line(f"  {nodeid}")
        for error in self._lost:
            terminalreporter.write_line(f"FAILED: a worker was lost: {error}", red=True)
