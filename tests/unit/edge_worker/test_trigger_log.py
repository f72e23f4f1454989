"""The log of a trigger, which the agent writes for it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from airbridge.edge_worker.triggers import log_file

AT = datetime(2025, 1, 1, tzinfo=UTC)


def test_lines_end_with_one_line_feed(tmp_path: Path) -> None:
    """Each line is one, whether or not it came with its end."""
    path = tmp_path / "1.log"
    assert log_file.append(path, b'{"event": "a"}', AT)
    assert log_file.append(path, b'{"event": "b"}\n', AT)
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_full_log_takes_no_more(tmp_path: Path) -> None:
    """A trigger that logs without end does not fill the worker's disk, and its log has the reason of what it lacks."""
    path = tmp_path / "1.log"
    line = json.dumps({"event": "x" * 100}).encode()
    written = [log_file.append(path, line, AT, most=1000) for _ in range(100)]
    assert written.count(True) < 20
    assert not any(written[20:])
    assert path.stat().st_size < 1000 + 300
    last = json.loads(path.read_text().splitlines()[-1])
    assert (
        last["event"]
        == f"a line of {len(line)} bytes is left out: the log of a trigger has at most 1000 bytes"
    )


def test_line_that_is_too_long_is_left_out_alone(tmp_path: Path) -> None:
    """A line that does not fit is left out with the reason; shorter ones after it are there."""
    path = tmp_path / "1.log"
    log_file.append(path, b"x" * 5000, AT, most=1000)
    log_file.append(path, b'{"event": "after"}', AT, most=1000)
    first, second = (json.loads(line)["event"] for line in path.read_text().splitlines())
    assert first.startswith("a line of 5000 bytes is left out")
    assert second == "after"
