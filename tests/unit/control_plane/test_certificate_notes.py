"""Notes on certificates in a diagnosis: which workers are named, and how many."""

from __future__ import annotations

from datetime import UTC, datetime

from airbridge.control_plane.read_model.diagnosis.cause import Code
from airbridge.control_plane.read_model.diagnosis.waiting import certificate_notes
from airbridge.control_plane.read_model.standing import Standing
from airbridge.control_plane.read_model.workers import WorkerView
from airbridge.core.compatibility import Verdict

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def worker(name: str, *, ending: bool = True, standing: Standing = Standing.SERVING) -> WorkerView:
    return WorkerView(
        id=name,
        region="eu-west-1",
        pool="default",
        standing=standing,
        why="",
        state="active",
        wanted="active",
        comment=None,
        airbridge="0.1.0",
        airflow="3.0.4",
        python="3.11.7",
        image=None,
        verdict=Verdict.ALLOW,
        verdict_detail="",
        slots=8,
        slots_used=0,
        journal_pending=0,
        journal_bytes=0,
        queue_error=None,
        clock_skew_seconds=0.0,
        certificate_expires_at=NOW,
        certificate_seconds_left=240.0,
        certificate_ending=ending,
        enrolled_at=NOW,
        last_heartbeat_at=NOW,
        silent_seconds=0.0,
    )


def test_first_three_are_named() -> None:
    """Live workers that have not renewed in time, the first three of them; a page of names would help nobody."""
    fleet = [
        worker("renewed", ending=False),
        worker("silent", standing=Standing.SILENT),
        *(worker(f"w{number}") for number in range(1, 5)),
    ]
    notes = certificate_notes(fleet)
    assert [note.code for note in notes] == [Code.CERTIFICATE] * 3
    assert [note.sentence for note in notes] == [
        f"the certificate of w{number} expires in 4 min and has not been renewed" for number in (1, 2, 3)
    ]
