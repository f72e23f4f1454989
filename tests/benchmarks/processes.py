"""Cost of processes: CPU seconds and memory of whole process trees, from /proc."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def tree(roots: Iterable[int]) -> list[int]:
    """Return the live pids of the trees below `roots`, the roots included."""
    children: defaultdict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children[int(fields[1])].append(int(entry.name))
    found, todo = [], list(roots)
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(children[pid])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """Return user and system time spent so far below `roots`, by the living and by children they have reaped."""
    total = 0
    for pid in tree(roots):
        if fields := _stat(pid):
            total += sum(map(int, fields[11:15]))
    return total / _TICKS


def own_cpu_seconds(pid: int) -> float:
    """Return user and system time that a process spent itself, without its children's."""
    fields = _stat(pid)
    return sum(map(int, fields[11:13])) / _TICKS if fields else 0.0


def thread_cpu_seconds(pid: int, thread: int) -> float:
    """Return user and system time of one thread. Raises `OSError` if it is not there."""
    text = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
    return sum(map(int, text[text.rindex(")") + 2 :].split()[11:13])) / _TICKS


def machine_busy_seconds() -> float:
    """Return the CPU time that anything on this machine has spent since it started."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / _TICKS


def pss_bytes(pids: Iterable[int]) -> dict[int, int]:
    """Return the proportional set size of each process that is still there, in bytes."""
    sizes = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    sizes[pid] = int(line.split()[1]) * 1024
    return sizes


def total_pss_mb(pids: Iterable[int]) -> float:
    """Return the proportional set size of processes together, in megabytes."""
    return sum(pss_bytes(pids).values()) / 1e6


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from `state` on (so [1] is the parent, [11:15] the times)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()
