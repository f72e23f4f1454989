"""Terminal output of the demo: components, then the run's tasks, then the report."""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from airbridge.control_plane.cli import output
from airbridge.control_plane.cli.progress import ComponentDisplay
from airbridge.control_plane.local.demo import Report, TaskRow
from airbridge.control_plane.local.state import ComponentState

_COLUMNS = ("task", "data in", "ran in", "worker", "wait s", "run s", "state")
_LOG_LINES = 40


class DemoView:
    """Context manager that shows the demo's progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._components = ComponentDisplay(console)
        self._live: Live | None = None
        self._states: dict[str, str | None] = {}

    def __enter__(self) -> Self:
        self._components.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        self._components.__exit__(kind, error, trace)

    def note(self, text: str) -> None:
        """Show a step."""
        if self._live:
            self._live.stop()
        self._components.note(text)

    def changed(self, component: ComponentState) -> None:
        """Show a component."""
        self._components.changed(component)

    def tasks(self, rows: tuple[TaskRow, ...]) -> None:
        """Show the run's tasks: a table that redraws itself, or a line for each new state."""
        if not self._console.is_terminal:
            for row in rows:
                if self._states.get(row.task, "") != row.state:
                    self._states[row.task] = row.state
                    self.note(f"{row.task:<24} {row.state or 'waiting'} {row.worker or ''}")
            return
        if self._live is None:
            self._components.settle()
            self._live = Live(
                console=self._console, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False
            )
            self._live.start()
        self._live.update(task_table(rows))


def task_table(rows: Iterable[TaskRow]) -> Table:
    """Return the tasks as a table."""
    return output.table(
        None,
        _COLUMNS,
        [(row.task, row.data_in, row.region, row.worker, row.wait, row.run, row.state) for row in rows],
    )


def print_report(console: Console, report: Report) -> None:
    """Write the report to stdout."""
    console.print(task_table(report.tasks))
    console.print("\nresult of the last task, from XCom:")
    console.print(json.dumps(report.result, indent=2), markup=False)
    console.print(f"\nlog of {report.log_of}:")
    for line in report.log[-_LOG_LINES:]:
        console.print(f"  {line}", markup=False, soft_wrap=True)
    verdict = (
        "every task ran in the region of its data"
        if report.ok
        else "NOT every task ran in the region of its data: see the table"
    )
    console.print(
        f"\nrun {report.state}; {verdict}; ready in {report.seconds_to_ready} s, ran in {report.seconds_to_run} s"
    )
