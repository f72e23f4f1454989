"""Progress on stderr: of components that start, and of a push. Live on a terminal; elsewhere the lines that a log should have."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from airbridge.control_plane.local.state import ComponentState, Phase

_STYLES = {Phase.READY: "green", Phase.DONE: "green", Phase.BACKOFF: "red", Phase.STOPPED: "dim"}
_SHOWN = (Phase.READY, Phase.DONE, Phase.BACKOFF, Phase.STOPPED)


class ComponentDisplay:
    """Context manager that shows every change of a component."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._components: dict[str, ComponentState] = {}
        self._begun = time.monotonic()
        # What goes to stdout is a result: it must not be drawn into a table on stderr.
        self._live = (
            Live(console=console, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.settle()

    def settle(self) -> None:
        """Stop the live table; show later changes as lines."""
        if self._live:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Show a message that belongs to no component."""
        self._console.print(f"{self._elapsed} {text}", markup=False)

    def changed(self, component: ComponentState) -> None:
        """Show a component's new state."""
        self._components[component.name] = component
        if self._live:
            self._live.update(self._table())
        elif component.phase in _SHOWN:
            self._console.print(f"{self._elapsed} {self._sentence(component)}", markup=False, soft_wrap=True)

    @property
    def _elapsed(self) -> str:
        return f"{time.monotonic() - self._begun:6.1f} s"

    @staticmethod
    def _sentence(component: ComponentState) -> str:
        words = [f"{component.name:<24}", component.phase.value]
        if component.phase is Phase.BACKOFF:
            words.append(f"(see {component.log})")
        elif component.phase is not Phase.STOPPED and component.url:
            words.append(component.url)
        return " ".join(words)

    def _table(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        for component in self._components.values():
            seconds = f"{component.seconds_to_ready:.1f} s" if component.seconds_to_ready is not None else ""
            url = component.url or ""
            if component.phase is Phase.STARTING:
                grid.add_row(Spinner("dots"), component.name, "starting", seconds, url)
            else:
                style = _STYLES.get(component.phase, "dim")
                grid.add_row("", component.name, Text(component.phase.value, style=style), seconds, url)
        return grid


class SendDisplay:
    """Context manager that shows how archives are sent: the step and its seconds on a terminal, elsewhere a line for each.

    `first` is the step before the first is sent, `last` what the gateway does after the last byte of each.
    """

    def __init__(self, console: Console, first: str, last: str) -> None:
        self._console = console
        self._last = last
        self._size = 0
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        # What goes to stdout is a result: see `ComponentDisplay`.
        self._progress = Progress(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._step = self._progress.add_task(first, total=None)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:  # elsewhere it would print an empty line
            self._progress.stop()

    def sending(self, what: str, archive_bytes: int) -> None:
        """Show what is sent."""
        self._size = archive_bytes
        self._console.print(f"pushing {what}, {archive_bytes / 1024:.1f} KiB", markup=False, soft_wrap=True)

    def sent(self, sent_bytes: int) -> None:
        """Show how much is sent; after the last byte, what the gateway does with it."""
        done = f"sending: {sent_bytes * 100 // max(self._size, 1)} %"
        self._progress.update(self._step, description=self._last if sent_bytes >= self._size else done)


class PushDisplay(SendDisplay):
    """Display of a push of DAG code."""

    def __init__(self, console: Console, folder: str, bundle: str) -> None:
        checking = "the gateway builds the packages, parses the DAG files and publishes them"
        super().__init__(console, f"packing {folder}", checking)
        self._title = f"{folder} to bundle {bundle}"

    def packed(self, files: int, archive_bytes: int) -> None:
        """Show what is sent."""
        self.sending(f"{self._title}: {files} files", archive_bytes)
