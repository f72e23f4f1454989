"""Linux process primitives: names, parents and children, memory."""

from __future__ import annotations

import ctypes
import os
import random
import resource
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
from setproctitle import setproctitle

from airbridge.core.sandbox import hardening
from airbridge.edge_worker.runner.messages import ProcessLimits, Used

_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36

# The kernel's name of a supervisor's process (at most 15 bytes).
SUPERVISOR: Final = "airbridge-sup"

# The same of a template.
TEMPLATE: Final = "airbridge-tmpl"

# The beginning of a task's process title, and so of its name.
TASK: Final = "airbridge task"

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: Any) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def name_self(name: str, title: str) -> None:
    """Set the kernel's name of this process, and the title that ``ps`` shows as its command line."""
    # First: setproctitle sets the kernel's name as well, to the beginning of the title.
    setproctitle(title)
    _prctl(_PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def prefer_for_oom_kill() -> None:
    """Make the kernel kill this process, a task, before a supervisor or the agent when memory runs out."""
    with suppress(OSError), hardening.own_proc_entries():
        Path("/proc/self/oom_score_adj").write_text("500")


def limit_self(limits: ProcessLimits) -> None:
    """Limit what this process, and each that it starts, may use; neither can raise it again."""
    if limits.memory:
        _limit(resource.RLIMIT_DATA, limits.memory + _data_bytes())
    if limits.file:
        _limit(resource.RLIMIT_FSIZE, limits.file)


def limit_own_memory(most: int) -> None:
    """Limit the memory that this process may have beyond what it has now, in bytes; 0 takes the limit away.

    The process itself may raise it again: it holds code that is trusted, or errs.
    """
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = _data_bytes() + most if most else hard
    resource.setrlimit(
        resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
    )


def _data_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def _limit(which: int, most: int) -> None:
    hard = resource.getrlimit(which)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, most))


def children() -> list[int]:
    """Return the process ids of this process's children, zombies included."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [child.pid for child in psutil.Process().children()]


def parent_of(pid: int) -> int:
    """Return the process id of a process's parent; 0 if it is gone, or /proc does not show it."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def name_of(pid: int) -> str:
    """Return the kernel's name of a process, or nothing if it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def has_in_environment(pid: int, assignment: str) -> bool:
    """Return whether a process was started with ``NAME=value`` in its environment."""
    with suppress(OSError):
        return assignment.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def is_runner_process(pid: int) -> bool:
    """Return whether a process is a template, a supervisor or a task, by its name: their environments are not readable."""
    name = name_of(pid)
    return name in {SUPERVISOR, TEMPLATE} or name.startswith(TASK[:15])


def kill(pid: int) -> None:
    """Kill a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def kill_and_reap(pid: int) -> None:
    """Kill a child and wait for it."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def thread_count() -> int:
    """Return how many threads this process has, those not started by Python included."""
    with suppress(OSError):
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    return threading.active_count()


def descriptors() -> dict[int, str]:
    """Return this process's open descriptors and what each refers to."""
    found: dict[int, str] = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of the listing itself
            found[int(entry.name)] = str(entry.readlink())
    return {fd: target for fd, target in found.items() if target != f"/proc/{os.getpid()}/fd"}


def pss_bytes(pid: int | str = "self") -> int:
    """Return a process's share of memory: its own pages, and of shared ones its part."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def oom_kills() -> int:
    """Return how many processes the kernel has killed when memory ran out, since it started."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def reap() -> list[tuple[int, int, Used]]:
    """Return pid, status and use of every child that has ended, so that none stays a zombie."""
    ended = []
    with suppress(ChildProcessError):
        while True:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                break
            # The kernel gives the largest resident size in KiB.
            used = Used(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
            ended.append((pid, status, used))
    return ended


def has_children() -> bool:
    """Return whether there is any child, ended or not. Does not reap."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def ignore_stop_signals() -> None:
    """Leave SIGTERM and SIGINT to the agent: a service manager sends them to every process of a service."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def reseed() -> None:
    """Give this process random numbers of its own."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def describe(status: int) -> str:
    """Return in words how a process ended, from a status of `os.waitpid`."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by signal {number} ({signal.strsignal(number)})"
    return f"exit code {os.waitstatus_to_exitcode(status)}"
