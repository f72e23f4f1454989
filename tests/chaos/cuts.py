"""Cuts in real time at default settings: how long, and at which boundary.

    python -m tests.chaos.cuts --seconds 1,31,60,150,300,600 --out docs/explanation/measurements/partition-results.json

One platform; for each boundary, workers of their own behind links of their own, so that all rows wait at once. The
platform's processes and the workers keep AirBridge's defaults. `--seconds 600` alone takes eleven minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.fleet import HOME_REGION, Fleet, Worker
from tests.support import weather
from tests.support.platform import LocalPlatform, Run, running, wait_for
from tests.support.weather import Network, Weather

from airbridge.control_plane.local.services.aws import parse_regions

DAG_FILE = Path(__file__).parent / "dags" / "cuts.py"
SECONDS = (1, 31, 60, 150, 300, 600)
ROWS = "abc"
CLAIM_TRIES = 6
CLAIM_SECONDS = 12.0
LONG_POLL_SECONDS = 22.0
"""A long poll whose client was cut off in the cell before may still take a message: it is waited out."""
MEND_SECONDS = 240.0
"""Time for a run to end after the cut: a message whose receipt was lost stays hidden for 60 s."""


@dataclass(frozen=True)
class Cell:
    """Result of one cut."""

    system: str
    weather: str
    boundary: str
    seconds: float
    state: str
    """Of the task that was cut off."""
    tries: int
    xcoms: bool
    log_whole: bool
    seconds_to_report: float
    """From the end of the cut until the control plane had the task's result; 0 if it had it before."""
    note: str = ""

    @property
    def survived(self) -> bool:
        """True if the task succeeded at its first try, with complete XComs and log."""
        return self.state == "success" and self.tries == 1 and self.xcoms and self.log_whole


@dataclass(frozen=True)
class Stage:
    """One run of a worker's DAG, and the operations on it."""

    platform: LocalPlatform
    worker: Worker
    files: Path

    @property
    def dag_id(self) -> str:
        return f"cut-{self.worker.pool}"

    def trigger(self) -> str:
        return self.platform.airflow.trigger(
            self.dag_id, {"working": str(self.files / "working"), "go": str(self.files / "go")}
        )

    def go(self) -> None:
        (self.files / "go").touch()

    def until_working(self) -> None:
        wait_for((self.files / "working").exists, f"{self.dag_id} to work", 120)

    def until_item(self, run_id: str, state: str, timeout_seconds: float = 120.0) -> None:
        def there() -> bool:
            rows = self.platform.query(
                "SELECT state FROM airbridge_work_item WHERE dag_id = %s AND run_id = %s AND task_id = 'work'",
                self.dag_id,
                run_id,
            )
            return [(state,)] == rows

        wait_for(there, f"the work item of {self.dag_id} to be {state}", timeout_seconds)

    def until_received(self) -> None:
        sqs = self.platform.aws_client("sqs", HOME_REGION)
        url = sqs.get_queue_url(QueueName=f"airbridge-local-{HOME_REGION}-{self.worker.pool}")["QueueUrl"]

        def hidden() -> bool:
            name = "ApproximateNumberOfMessagesNotVisible"
            return int(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=[name])["Attributes"][name]) > 0

        wait_for(hidden, f"the message of {self.dag_id} to be received", 120)

    def until_granted(self, seen: int) -> None:
        deadline = time.monotonic() + 120
        while self.grants() <= seen:
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.worker.name} was granted nothing")
            time.sleep(0.005)

    def grants(self) -> int:
        return self.worker.log_file.read_text(errors="replace").count('"task.granted"')


Cut = Callable[[], None]


def at_receive(stage: Stage, cut: Cut, seconds: float) -> str:
    """Cut after SQS has handed the message out, with its answer lost."""
    stage.go()
    stage.worker.sqs.set(weather.LOSE_ANSWERS)
    run_id = stage.trigger()
    stage.until_received()
    cut()
    return run_id


def at_claim(stage: Stage, cut: Cut, seconds: float) -> str:
    """Cut after the gateway has granted the claim, with the grant lost."""
    stage.go()
    for _ in range(CLAIM_TRIES):
        stage.worker.gateway.set(weather.LOSE_ANSWERS)
        run_id = stage.trigger()
        try:
            stage.until_item(run_id, "claimed", CLAIM_SECONDS)
        except AssertionError:
            # A heartbeat came first and holds the only open connection. Let this run pass, and try with another.
            stage.worker.gateway.set(weather.FAIR)
            stage.platform.finish(stage.dag_id, run_id, MEND_SECONDS)
            continue
        cut()
        return run_id
    raise AssertionError(f"no claim of {stage.worker.name} got through in {CLAIM_TRIES} tries")


def at_start(stage: Stage, cut: Cut, seconds: float) -> str:
    """Cut as soon as the grant has arrived."""
    seen = stage.grants()
    stage.go()
    run_id = stage.trigger()
    stage.until_granted(seen)
    cut()
    return run_id


def mid_run(stage: Stage, cut: Cut, seconds: float) -> str:
    """Cut while the task runs; it goes on after the cut."""
    run_id = stage.trigger()
    stage.until_working()
    time.sleep(2)
    cut()
    time.sleep(2)
    stage.go()
    return run_id


def before_the_result(stage: Stage, cut: Cut, seconds: float) -> str:
    """Cut while the task runs; it ends inside the cut."""
    run_id = stage.trigger()
    stage.until_working()
    # Before `cut`, which blocks until the cut is over.
    threading.Timer(min(3.0, seconds / 2), stage.go).start()
    cut()
    return run_id


def answer_lost(stage: Stage, cut: Cut, seconds: float) -> str:
    """Cut after the result is committed, with the answer lost."""
    run_id = stage.trigger()
    stage.until_working()
    stage.worker.gateway.set(weather.LOSE_ANSWERS)
    stage.go()
    stage.until_item(run_id, "settled")
    cut()
    return run_id


def log_upload(stage: Stage, cut: Cut, seconds: float) -> str:
    """Cut after the result is reported, before the log is shipped."""
    run_id = stage.trigger()
    stage.until_working()
    stage.worker.s3.set(weather.BLACK_HOLE)
    stage.go()
    stage.until_item(run_id, "settled")
    cut()
    return run_id


BOUNDARIES: dict[str, tuple[str, Callable[[Stage, Cut, float], str]]] = {
    "receive": ("receive", at_receive),
    "claim": ("claim", at_claim),
    "start": ("start", at_start),
    "mid-run": ("run", mid_run),
    "before the result": ("result", before_the_result),
    "answer to the result lost": ("answer", answer_lost),
    "log upload": ("log", log_upload),
}


def spread(seconds: Sequence[float]) -> list[list[float]]:
    """Share the lengths out among workers: the longest alone, so that the whole takes little more than it does."""
    if len(seconds) <= 1:
        return [[*seconds]]
    longest = max(seconds)
    return [[longest], [each for each in seconds if each != longest]]


class Matrix:
    """All cells of one platform."""

    def __init__(self, platform: LocalPlatform, fleet: Fleet, files: Path, kind: Weather) -> None:
        self._platform, self._fleet, self._files, self._weather = platform, fleet, files, kind
        self.cells: list[Cell] = []
        self._lock = threading.Lock()

    def run(self, seconds: Sequence[float], boundaries: Sequence[str]) -> None:
        """Start the workers, then let every row of cells take its time."""
        rows = []
        for boundary in boundaries:
            for row, lengths in zip(ROWS, spread(seconds), strict=False):
                pool = f"{BOUNDARIES[boundary][0]}-{row}"
                rows.append((boundary, lengths, self._fleet.add(f"w-{pool}", pool)))
        for _, _, worker in rows:
            worker.start()
            worker.wait_started(180)
        for _, _, worker in rows:
            self._platform.airflow.wait_for_dag(f"cut-{worker.pool}")
            self._platform.airflow.unpause(f"cut-{worker.pool}")
        threads = [threading.Thread(target=self._row, args=row) for row in rows]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _row(self, boundary: str, lengths: Sequence[float], worker: Worker) -> None:
        for length in lengths:
            try:
                cell = self._cell(boundary, length, worker)
            except Exception as error:  # noqa: BLE001 - a broken cell is a finding, not the end of the others
                cell = Cell(
                    "AirBridge",
                    self._weather.name,
                    boundary,
                    length,
                    "not measured",
                    0,
                    False,
                    False,
                    0.0,
                    repr(error)[:300],
                )
                worker.set(weather.FAIR)
            with self._lock:
                self.cells.append(cell)
            print(
                f"{boundary:<26} {length:>5g} s  {cell.state:<8} {asdict(cell)}", file=sys.stderr, flush=True
            )

    def _cell(self, boundary: str, length: float, worker: Worker) -> Cell:
        time.sleep(LONG_POLL_SECONDS)
        files = self._files / f"{worker.pool}-{length:g}"
        files.mkdir()
        stage = Stage(self._platform, worker, files)
        mended = 0.0

        def cut() -> None:
            nonlocal mended
            worker.set(self._weather)
            time.sleep(length)
            worker.set(weather.FAIR)
            mended = time.time()

        run_id = BOUNDARIES[boundary][1](stage, cut, length)
        run = self._platform.finish(stage.dag_id, run_id, MEND_SECONDS)
        lines = self._lines(run)
        return Cell(
            system="AirBridge",
            weather=self._weather.name,
            boundary=boundary,
            seconds=length,
            state=str(run.task("work")["state"]),
            tries=max(ti["try_number"] for ti in run.tasks),
            xcoms=lines is not None
            and run.state == "success"
            and self._platform.xcom(run, "read") == lines + 1,
            log_whole=lines is not None and self._has_whole_log(run, lines),
            seconds_to_report=round(max(0.0, self._settled_at(run) - mended), 1),
            note=self._note(run),
        )

    def _lines(self, run: Run) -> int | None:
        try:
            given, pushed = self._platform.xcom(run, "work"), self._platform.xcom(run, "work", "lines")
        except KeyError:
            return None
        return int(given) if given == pushed else None

    def _has_whole_log(self, run: Run, lines: int) -> bool:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if is_whole(self._platform.task_log(run, "work"), lines):
                return True
            time.sleep(1)
        return False

    def _settled_at(self, run: Run) -> float:
        rows = self._platform.query(
            "SELECT extract(epoch from max(settled_at))::float8 FROM airbridge_work_item"
            " WHERE dag_id = %s AND run_id = %s AND task_id = 'work'",
            run.dag_id,
            run.run_id,
        )
        return float(rows[0][0])

    def _note(self, run: Run) -> str:
        rows = self._platform.query(
            "SELECT outcome, epoch, detail FROM airbridge_work_item"
            " WHERE dag_id = %s AND run_id = %s AND task_id = 'work'",
            run.dag_id,
            run.run_id,
        )
        return "; ".join(f"{outcome}, epoch {epoch}, {detail}" for outcome, epoch, detail in rows)


def is_whole(log: str, lines: int) -> bool:
    """Return whether every line that the task printed is in the log, once, in order."""
    found = [int(number) for number in re.findall(r"\bline (\d+) of process", log)]
    return found == [*range(lines)] and log.count(f"the end after {lines} lines") == 1


def table(cells: Sequence[Cell]) -> str:
    """The cells as a table: a row for each boundary, a column for each length."""
    lengths = sorted({cell.seconds for cell in cells})
    found = {(cell.boundary, cell.seconds): cell for cell in cells}
    lines = [
        "| boundary | " + " | ".join(f"{length:g} s" for length in lengths) + " |",
        "| --- " * (len(lengths) + 1) + "|",
    ]
    for boundary in dict.fromkeys(cell.boundary for cell in cells):
        row = [word(found[boundary, length]) if (boundary, length) in found else "" for length in lengths]
        lines.append(f"| {boundary} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def tables(cells: Sequence[Cell]) -> str:
    """A table for each system and kind of cut."""
    kinds = dict.fromkeys((cell.system, cell.weather) for cell in cells)
    return "\n\n".join(
        f"{system}, {kind}\n\n{table([cell for cell in cells if (cell.system, cell.weather) == (system, kind)])}"
        for system, kind in kinds
    )


def word(cell: Cell) -> str:
    """Return one cell as text."""
    if cell.survived:
        return f"success (+{cell.seconds_to_report:.0f} s)"
    lacks = [name for name, there in (("XComs", cell.xcoms), ("log", cell.log_whole)) if not there]
    return f"**{cell.state}**" + (f", no whole {' and '.join(lacks)}" if lacks else "")


def write(path: Path, cells: Sequence[Cell]) -> None:
    """Keep the cells as JSON, in a stable order."""
    order = [*BOUNDARIES]
    rows = sorted(
        cells, key=lambda cell: (cell.system, cell.weather, order.index(cell.boundary), cell.seconds)
    )
    path.write_text(json.dumps([asdict(cell) for cell in rows], indent=1) + "\n")


def read(path: Path) -> list[Cell]:
    """Return the cells of an earlier measurement."""
    return [Cell(**row) for row in json.loads(path.read_text())] if path.exists() else []


def merged(before: Sequence[Cell], now: Sequence[Cell]) -> list[Cell]:
    """Return all cells; a repeated measurement replaces the earlier one."""
    cells = {(cell.system, cell.boundary, cell.seconds, cell.weather): cell for cell in (*before, *now)}
    return [*cells.values()]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", default=",".join(map(str, SECONDS)))
    parser.add_argument("--boundaries", default=",".join(BOUNDARIES))
    parser.add_argument("--weather", choices=("black hole", "refuse"), default="black hole")
    parser.add_argument(
        "--out", type=Path, required=True, help="a JSON file; cells measured before stay in it"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing, print what is in --out")
    return parser.parse_args(words)


def main() -> None:
    """Run the matrix; exit with 1 if a cell was not survived."""
    asked = arguments()
    if asked.show:
        print(tables(read(asked.out)))
        return
    seconds = [float(each) for each in asked.seconds.split(",")]
    boundaries = asked.boundaries.split(",")
    pools = [f"{BOUNDARIES[boundary][0]}-{row}" for boundary in boundaries for row in ROWS]
    regions = parse_regions([f"{HOME_REGION}:default,{','.join(pools)}"])
    with (
        tempfile.TemporaryDirectory(prefix="airbridge-cuts-") as files,
        running(regions=regions, workers_per_region=0) as platform,
        Network() as network,
    ):
        platform.add_dag_file(DAG_FILE)
        fleet = Fleet(platform, network, environ={})
        try:
            matrix = Matrix(platform, fleet, Path(files), weather.KINDS[asked.weather])
            matrix.run(seconds, boundaries)
        finally:
            fleet.close()
            keep = os.environ.get("AIRBRIDGE_TEST_LOGS")
            for worker in fleet.workers if keep else ():
                (Path(str(keep)) / f"{worker.name}.log").write_bytes(worker.log_file.read_bytes())
    write(asked.out, merged(read(asked.out), matrix.cells))
    print(table(matrix.cells))
    sys.exit(0 if all(cell.survived for cell in matrix.cells) else 1)


if __name__ == "__main__":
    main()
