"""A run of `dags/fifty.py` under trouble, and what must be true of it afterwards, whatever the trouble was."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.platform import LocalPlatform, Run

DAG_FILE = Path(__file__).parent / "dags" / "fifty.py"


@dataclass(frozen=True)
class Troubled:
    """A finished run and the notes that its code left."""

    platform: LocalPlatform
    run: Run
    notes: tuple[tuple[str, str, str], ...]
    """(number, task instance id, try) for every time that the code began."""

    def check(self, width: int) -> None:
        """Every task was committed once, with the result of its code; nothing of a task instance was done twice."""
        states = Counter(task["state"] for task in self.run.tasks)
        assert Counter({"success": width}) == states
        assert self.run.state == "success"
        for number in range(width):
            assert number * number == self.platform.xcom(self.run, f"work_{number}")
        begun = Counter(ti_id for _number, ti_id, _try in self.notes)
        twice = {ti_id: times for ti_id, times in begun.items() if times > 1}
        assert self._committed_more_than_once(twice) == {}
        assert self.platform.query(
            "SELECT count(*) FROM airbridge_work_item WHERE dag_id = %s AND run_id = %s AND state <> 'settled'",
            self.run.dag_id,
            self.run.run_id,
        ) == [(0,)]

    def _committed_more_than_once(self, twice: dict[str, int]) -> dict[str, int]:
        """Of the task instances whose code began twice, those with two results that were accepted."""
        doubled = {}
        for ti_id in twice:
            rows = self.platform.query(
                "SELECT count(*) FROM airbridge_work_item WHERE ti_id = %s AND outcome = 'success'", ti_id
            )
            if rows[0][0] > 1:
                doubled[ti_id] = rows[0][0]
        return doubled


def run_with_trouble(
    platform: LocalPlatform,
    dag_id: str,
    trouble: Callable[[], None],
    *,
    seconds: float = 1.0,
    timeout_seconds: float = 240.0,
) -> Troubled:
    """Start the run, let `trouble` happen when about a third of its tasks have begun, and wait for its end."""
    platform.add_dag_file(DAG_FILE)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        notes = Path(folder) / "notes"
        run_id = platform.trigger(dag_id, {"notes": str(notes), "seconds": seconds})
        _wait_until_begun(notes, 12)
        trouble()
        run = platform.finish(dag_id, run_id, timeout_seconds)
        lines = [line.split() for line in notes.read_text().splitlines()]
    return Troubled(platform, run, tuple((line[0], line[1], line[2]) for line in lines))


def _wait_until_begun(notes: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not notes.exists() or len(notes.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, f"fewer than {count} tasks have begun within 120 s"
        time.sleep(0.1)
