"""Flame graphs of the gateway, the scheduler and the worker's agent while a fan-out runs: ``docs/explanation/measurements/profile-*.svg``.

    python -m tests.benchmarks.profile

py-spy comes from the package index by ``uv tool run``. It samples only threads that are running.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.bench import started
from tests.benchmarks.cases import Group
from tests.benchmarks.edge import Edge
from tests.benchmarks.systems import end_well, uv

DOCS = Path(__file__).parents[2] / "docs" / "explanation" / "measurements"
PY_SPY = "py-spy@0.4.1"
SAMPLES_PER_SECOND = 200
SECONDS = 20
RUNS = 3


def main() -> int:
    """Profile."""
    logging.disable(logging.INFO)
    end_well()
    with started(Group("airbridge", 0.0, 60.0, ())) as (system, api):
        assert isinstance(system, Edge)
        profilers = [_profile(name, pid) for name, pid in system.profiled_pids().items()]
        for number in range(RUNS):
            api.run("fanout_100", f"profile-{number}", 300.0)
        return max(profiler.wait() for profiler in profilers)


def _profile(name: str, pid: int) -> subprocess.Popen[bytes]:
    options = ["--format", "flamegraph", "--rate", str(SAMPLES_PER_SECOND), "--duration", str(SECONDS)]
    # Without stopping the process at each sample: a few samples are torn, but the figures are those of an undisturbed run.
    command = [
        uv(),
        "tool",
        "run",
        PY_SPY,
        "record",
        "--nonblocking",
        *options,
    ]
    command += ["--pid", str(pid), "--output", f"profile-{name}.svg"]
    return subprocess.Popen(command, cwd=DOCS, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
