"""Violations found in watched code. Whole files are judged by real templates in tests/integration/runner."""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from airbridge.edge_worker.runner.forking import fork_safety


def watched(tmp_path: Path, action: Callable[[], object]) -> list[str]:
    with fork_safety.watching(tmp_path) as watch:
        action()
    return watch.violations


def test_clean_code_has_no_violation(tmp_path: Path) -> None:
    """Code that does nothing unsafe has no violation, and the environment is as before."""
    plain = type(os.environ)
    assert watched(tmp_path, lambda: os.environ.get("HOME")) == []
    assert type(os.environ) is plain


@pytest.mark.parametrize("key", sorted(fork_safety.PARSING_CONTEXT))
def test_reading_parsing_context_is_violation(tmp_path: Path, key: str) -> None:
    """Every way to read the parsing context is a violation."""
    assert watched(tmp_path, lambda: os.environ.get(key)) == ["reads the parsing context"]
    assert watched(tmp_path, lambda: key in os.environ) == ["reads the parsing context"]
    assert watched(tmp_path, lambda: os.getenv(key)) == ["reads the parsing context"]


def test_seeding_and_drawing_are_violations(tmp_path: Path) -> None:
    """Seeding or drawing from the global generator is a violation; a generator of the file's own is not."""
    state = random.getstate()
    try:
        assert watched(tmp_path, lambda: random.seed(1)) == ["draws or seeds random numbers"]
        assert watched(tmp_path, random.random) == ["draws or seeds random numbers"]
        assert watched(tmp_path, lambda: random.Random(1).random()) == []
    finally:
        random.setstate(state)


def test_system_randomness_of_dag_code_counts(tmp_path: Path) -> None:
    """Randomness that the snapshot's code draws from the system is a violation; what libraries draw at import is not."""
    code = tmp_path / "dag.py"
    code.write_text("import uuid\ndef draw():\n    return uuid.uuid4()\n")
    scope: dict[str, Callable[[], object]] = {}
    exec(compile(code.read_text(), str(code), "exec"), scope)
    assert watched(tmp_path, scope["draw"]) == ["draws random numbers from the system"]
    assert watched(tmp_path, uuid.uuid4) == []


def test_reading_outside_snapshot_is_violation(tmp_path: Path) -> None:
    """Reading a file outside of the snapshot is a violation, closed again or not; reading the snapshot is none."""
    root = tmp_path / "bundle"
    root.mkdir()
    inside, visible = root / "a.sql", tmp_path / "b.yaml"
    for path in (inside, visible):
        path.write_text("x")
    assert watched(root, inside.read_text) == []
    assert watched(root, visible.read_text) == [
        f"reads the file {visible}, which is not part of the DAG code"
    ]
    assert watched(root, lambda: inside.write_text("y")) == [f"writes the file {inside}"]


def test_lasting_signal_handler_is_violation(tmp_path: Path) -> None:
    """A signal handler that stays is a violation; one that is restored is not."""
    old = signal.getsignal(signal.SIGUSR2)
    try:
        assert watched(tmp_path, lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)) == [
            "sets signal handlers"
        ]
    finally:
        signal.signal(signal.SIGUSR2, old)


def test_open_descriptor_is_violation(tmp_path: Path) -> None:
    """A descriptor left open is a violation that names its target."""
    left: list[int] = []
    found = watched(tmp_path, lambda: left.extend(os.pipe()))
    for fd in left:
        os.close(fd)
    assert len(found) == 1
    assert found[0].startswith("leaves pipe:")


def test_threads_that_end_before_fork(tmp_path: Path) -> None:
    """Threads that a library ends before each fork, as numpy's OpenBLAS does, are no violation; others are."""
    ended = threading.Event()

    def start() -> threading.Thread:
        thread = threading.Thread(target=ended.wait)
        thread.start()
        return thread

    def end(thread: threading.Thread) -> None:
        ended.set()
        thread.join()

    started: list[threading.Thread] = []
    assert watched(tmp_path, lambda: started.append(start())) == ["starts threads"]
    end(started.pop())
    ended.clear()
    os.register_at_fork(before=lambda: [end(each) for each in started])
    assert watched(tmp_path, lambda: started.append(start())) == []
    started.clear()
