"""What is seen of code that is watched. That files are judged rightly as a whole is tested on real templates."""

from __future__ import annotations

import os
import random
import signal
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from airbridge.edge_worker.runner import hazards


def watched(tmp_path: Path, action: Callable[[], object]) -> list[str]:
    with hazards.watching(tmp_path) as watch:
        action()
    return watch.hazards


def test_nothing_done_is_no_hazard(tmp_path: Path) -> None:
    """And the environment is as before."""
    plain = type(os.environ)
    assert watched(tmp_path, lambda: os.environ.get("HOME")) == []
    assert type(os.environ) is plain


@pytest.mark.parametrize("key", sorted(hazards.PARSING_CONTEXT))
def test_asking_for_the_parsing_context_is_a_hazard(tmp_path: Path, key: str) -> None:
    """However it is asked for."""
    assert watched(tmp_path, lambda: os.environ.get(key)) == ["asks for the parsing context"]
    assert watched(tmp_path, lambda: key in os.environ) == ["asks for the parsing context"]
    assert watched(tmp_path, lambda: os.getenv(key)) == ["asks for the parsing context"]


def test_seeding_and_drawing_are_hazards(tmp_path: Path) -> None:
    """Of the global generator; one of the file's own is its business."""
    state = random.getstate()
    try:
        assert watched(tmp_path, lambda: random.seed(1)) == ["draws or seeds random numbers"]
        assert watched(tmp_path, random.random) == ["draws or seeds random numbers"]
        assert watched(tmp_path, lambda: random.Random(1).random()) == []
    finally:
        random.setstate(state)


def test_system_randomness_counts_only_when_the_snapshots_code_asks(tmp_path: Path) -> None:
    """Libraries draw it at import for their own ends."""
    code = tmp_path / "dag.py"
    code.write_text("import uuid\ndef draw():\n    return uuid.uuid4()\n")
    scope: dict[str, Callable[[], object]] = {}
    exec(compile(code.read_text(), str(code), "exec"), scope)
    assert watched(tmp_path, scope["draw"]) == ["draws random numbers from the system"]
    assert watched(tmp_path, uuid.uuid4) == []


def test_reading_the_snapshot_is_no_hazard_and_reading_elsewhere_is(tmp_path: Path) -> None:
    """Closed again or not."""
    root = tmp_path / "bundle"
    root.mkdir()
    inside, outside = root / "a.sql", tmp_path / "b.yaml"
    for path in (inside, outside):
        path.write_text("x")
    assert watched(root, inside.read_text) == []
    assert watched(root, outside.read_text) == [
        f"reads the file {outside}, which is not part of the DAG code"
    ]
    assert watched(root, lambda: inside.write_text("y")) == [f"writes the file {inside}"]


def test_a_signal_handler_that_stays_is_a_hazard(tmp_path: Path) -> None:
    """One that is put back is not."""
    old = signal.getsignal(signal.SIGUSR2)
    try:
        assert watched(tmp_path, lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)) == [
            "sets signal handlers"
        ]
    finally:
        signal.signal(signal.SIGUSR2, old)


def test_a_descriptor_left_open_is_a_hazard(tmp_path: Path) -> None:
    """It names what it refers to."""
    left: list[int] = []
    found = watched(tmp_path, lambda: left.extend(os.pipe()))
    for fd in left:
        os.close(fd)
    assert len(found) == 1
    assert found[0].startswith("leaves pipe:")
