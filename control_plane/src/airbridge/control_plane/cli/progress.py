"""Shows components coming up: a table that redraws itself on a terminal, one line a change elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from airbridge.control_plane.local.state import ComponentState, Phase

_STYLES = {Phase.READY: "green", Phase.DONE: "green", Phase.BACKOFF: "red", Phase.STOPPED: "dim"}
_TOLD = (Phase.READY, Phase.DONE, Phase.BACKOFF, Phase.STOPPED)


class ComponentDisplay:
    """A context manager that is told of every change."""

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
        """Leave the table as it is; from now on a change is a line."""
        if self._live:
            self._live.stop()
            self._live = None

    def note(self, text: str) -> None:
        """Say something that belongs to no component."""
        self._console.print(f"{self._elapsed} {text}", markup=False)

    def changed(self, component: ComponentState) -> None:
        """Show a component's new state."""
        self._components[component.name] = component
        if self._live:
            self._live.update(self._table())
        elif component.phase in _TOLD:
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
