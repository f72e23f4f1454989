"""Forks of a process whose other threads import modules and hold locks, as the scheduler's do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# A thread imports a module that takes a while; meanwhile the process forks a child that needs the module.
IMPORTING = """
import os, sys, threading, time
sys.path.insert(0, {folder!r})
{guard}
threading.Thread(target=lambda: __import__("slow_module"), daemon=True).start()
time.sleep(0.2)
pid = os.fork()
if pid == 0:
    import slow_module
    os._exit(0 if slow_module.DONE else 1)
deadline = time.monotonic() + 5
while time.monotonic() < deadline:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done:
        print("ended", os.waitstatus_to_exitcode(status))
        break
    time.sleep(0.01)
else:
    os.kill(pid, 9)
    print("hung")
"""
# A thread writes to structlog's output all the time; a child that logs must not wait for it.
WRITING = """
import os, structlog, sys, threading, time
{guard}
log = structlog.get_logger()
log.info("first")
lock = next(iter(structlog._output.WRITE_LOCKS.values()))
def write():
    while True:
        with lock:
            time.sleep(0.005)
threading.Thread(target=write, daemon=True).start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        log.info("from the child")
        os._exit(0)
    deadline = time.monotonic() + 5
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            sys.exit("hung")
        time.sleep(0.001)
print("ended 0")
"""
GUARD = "from airbridge.executor import fork_safety; fork_safety.ForkGuard({locks}, wait_seconds={seconds}).install()"


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def slow_module(tmp_path: Path) -> Path:
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(1)\nDONE = True\n")
    return tmp_path


def test_fork_cuts_import_without_guard(slow_module: Path) -> None:
    """What the guard is for: the child waits for ever for a thread that it does not have."""
    assert run(IMPORTING.format(folder=str(slow_module), guard="")).stdout == "hung\n"


def test_fork_waits_for_import(slow_module: Path) -> None:
    """The child has the whole module."""
    guard = GUARD.format(locks="lambda: []", seconds=5)
    assert run(IMPORTING.format(folder=str(slow_module), guard=guard)).stdout.endswith("ended 0\n")


def test_child_that_would_hang_ends(slow_module: Path) -> None:
    """An import that takes longer than a fork may wait ends the child at once; parent and child name the module."""
    guard = GUARD.format(locks="lambda: []", seconds=0.1)
    done = run(IMPORTING.format(folder=str(slow_module), guard=guard))
    assert done.stdout.endswith("ended 75\n")
    assert "fork.refused" in done.stdout
    assert "the import of slow_module" in done.stderr


def test_fork_holds_output_lock() -> None:
    """A child can log though another thread of the parent was writing."""
    guard = GUARD.format(locks="fork_safety.output_locks", seconds=5)
    assert run(WRITING.format(guard=guard)).stdout.endswith("ended 0\n")
    assert run(WRITING.format(guard="")).stderr == "hung\n"
