"""Task log entries as text."""

from __future__ import annotations

from airbridge.control_plane.local.services.airflow_rest import _line


def test_exception_is_shown() -> None:
    """An entry's exception follows it, frames first: the event alone says nothing of the cause."""
    frame = {"filename": "/dags/report.py", "lineno": 7, "name": "extract"}
    detail = {"exc_type": "FileNotFoundError", "exc_value": "no such file", "frames": [frame]}
    entry = {
        "timestamp": "T",
        "level": "error",
        "event": "Task failed with exception",
        "error_detail": [detail],
    }
    assert _line(entry).splitlines() == [
        "T error Task failed with exception",
        "    extract (/dags/report.py:7)",
        "    FileNotFoundError: no such file",
    ]


def test_plain_entry() -> None:
    """An entry without parts is itself."""
    assert _line("a line") == "a line"
