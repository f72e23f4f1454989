"""Interface of a system under test to the harness."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.benchmarks import peers
from tests.benchmarks.edge import Edge

HERE = Path(__file__).parent
WORKLOADS = HERE / "dags"
DAG_COUNT = len(list(WORKLOADS.glob("*.py")))
"""A file has one DAG: a peer parses the file of a task before it runs it, and should not have to parse the others."""
PEERS_VENV = Path.home() / ".cache" / "airbridge" / "bench-peers"


@dataclass(frozen=True)
class Traffic:
    """Traffic between workers and control plane so far. A figure that cannot be measured is None."""

    requests: int | None = None
    bytes: int | None = None

    def since(self, before: Traffic) -> Traffic:
        """Return what has passed since then."""
        return Traffic(_less(self.requests, before.requests), _less(self.bytes, before.bytes))


def _less(now: int | None, before: int | None) -> int | None:
    return None if now is None or before is None else now - before


class System(Protocol):
    """One system under test. `worker`, `control`, `database` and `broker` are components that each has."""

    name: str

    @property
    def base_url(self) -> str:
        """The api-server's URL."""

    @property
    def database_url(self) -> str:
        """The metadata database."""

    def start(self) -> None:
        """Bring it up."""

    def stop(self) -> None:
        """Take it down, whatever state it is in."""

    def cpu_seconds(self) -> Mapping[str, float]:
        """Return the CPU time of each component so far; `control` is all of the control plane's own processes."""

    def worker_pids(self) -> Sequence[int]:
        """Return the live processes that run tasks, and those that these share their memory with."""

    def main_pids(self) -> Mapping[str, int]:
        """Return the processes whose memory might grow with a backlog: `scheduler`, and `gateway` where there is one."""

    def traffic(self) -> tuple[int | None, int | None]:
        """Return requests and bytes between workers and control plane so far."""


def make(name: str, home: Path, round_trip_ms: float, slots: int) -> System:
    """Return a system by name, not started yet. Raises `KeyError` for one that is not known."""
    if name == "airbridge":
        return Edge(home, WORKLOADS, round_trip_ms, slots)
    newest = name.startswith("edge3-5")
    folder = PEERS_VENV.with_name(f"{PEERS_VENV.name}-edge3-5") if newest else PEERS_VENV
    venv = peers.environment(folder, uv(), newest_edge3=newest)
    return peers.peer(name, venv, home, WORKLOADS, round_trip_ms)


def end_well() -> None:
    """Let SIGTERM end this program as an exception does: what it has started is taken down."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))


def uv() -> str:
    """Return the project's uv, or else the one on PATH."""
    local = HERE.parents[1] / ".tools" / "bin" / "uv"
    return str(local) if local.exists() else "uv"
