"""The same cuts on edge3 1.1.3, for comparison: ``python -m tests.chaos.cuts_edge3 --out FILE``.

One api-server and scheduler, a worker for each length behind a link of its own to the api-server, everything at edge3's
defaults. Two tasks are under way on each worker when the cut begins: one goes on after it, one ends inside it.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.systems import PEERS_VENV, uv
from tests.chaos.cuts import Cell, arguments, is_whole, merged, read, table, write
from tests.support import weather
from tests.support.weather import LOOPBACK, Link, Network, Weather

from airbridge.control_plane.local.services import postgres
from airbridge.control_plane.local.services.airflow_rest import AirflowRest

DAG_FILE = Path(__file__).parent / "dags" / "cuts_edge3.py"
BOUNDARIES = {"mid-run": "run", "before the result": "result"}
AFTER_SECONDS = 480.0
"""Time for a task to end after the cut: the scheduler's heartbeat timeout is 300 s."""


@dataclass
class CutOff(peers.Peer):
    """edge3 with a worker for each queue, each behind a link."""

    network: Network | None = None
    queues: Sequence[str] = ()
    links: dict[str, Link] = field(default_factory=dict)

    def _start_workers(self) -> None:
        assert self.network is not None
        for queue in self.queues:
            link = self.links[queue] = self.network.link(self.port["api"], queue)
            api = f"http://{LOOPBACK}:{link.port}"
            environ = {
                "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{api}/execution/",
                "AIRFLOW__EDGE__API_URL": f"{api}/edge_worker/v1/rpcapi",
                "AIRFLOW_HOME": str(self.home / queue),
            }
            command = [self._program, "edge", "worker", "--concurrency", "2", "-q", queue, "-H", queue]
            self.workers[queue] = self._spawn(f"worker-{queue}", command, environ)

    def workers_known(self) -> int:
        """Return the number of registered workers."""
        rows = postgres.query(self._postgres, "SELECT count(*) FROM edge_worker")
        return int(rows[0][0])

    def job_of(self, dag_id: str, run_id: str) -> str:
        """Return the task's state in edge3's own table."""
        rows = postgres.query(
            self._postgres,
            "SELECT state FROM edge_job WHERE dag_id = %s AND run_id = %s AND task_id = 'work'",
            (dag_id, run_id),
        )
        return ", ".join(str(row[0]) for row in rows)


class Matrix:
    """All cells of one edge3."""

    def __init__(self, peer: CutOff, airflow: AirflowRest, files: Path, kind: Weather) -> None:
        self._peer, self._airflow, self._files, self._weather = peer, airflow, files, kind
        self.cells: list[Cell] = []
        self._lock = threading.Lock()

    def run(self, seconds: Sequence[float]) -> None:
        """Measure every length at once."""
        threads = [threading.Thread(target=self._cut, args=(length,)) for length in seconds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _cut(self, length: float) -> None:
        queue = f"cut-{length:g}"
        link = self._peer.links[queue]
        runs = {boundary: self._begin(f"{queue}-{name}") for boundary, name in BOUNDARIES.items()}
        for _, _, files in runs.values():
            self._await((files / "working").exists, 240)
        time.sleep(2)
        link.set(self._weather)
        threading.Timer(min(3.0, length / 2), (runs["before the result"][2] / "go").touch).start()
        time.sleep(length)
        link.set(weather.FAIR)
        mended = time.time()
        time.sleep(2)
        (runs["mid-run"][2] / "go").touch()
        for boundary, (dag_id, run_id, _) in runs.items():
            cell = self._cell(boundary, length, dag_id, run_id, mended)
            with self._lock:
                self.cells.append(cell)
            print(f"{boundary:<26} {length:>5g} s  {cell}", file=sys.stderr, flush=True)

    def _begin(self, dag_id: str) -> tuple[str, str, Path]:
        files = self._files / dag_id
        files.mkdir()
        self._airflow.wait_for_dag(dag_id)
        self._airflow.unpause(dag_id)
        conf = {"working": str(files / "working"), "go": str(files / "go")}
        return dag_id, self._airflow.trigger(dag_id, conf), files

    def _cell(self, boundary: str, length: float, dag_id: str, run_id: str, mended: float) -> Cell:
        def work() -> dict[str, object]:
            return next(ti for ti in self._airflow.task_instances(dag_id, run_id) if ti["task_id"] == "work")

        def over() -> bool:
            return str(self._airflow.run(dag_id, run_id)["state"]) in {"success", "failed"}

        ended = self._await(over, AFTER_SECONDS)
        took = max(0.0, time.time() - mended)
        task, lines = work(), self._lines(dag_id, run_id)
        return Cell(
            system="edge3 1.1.3",
            weather=self._weather.name,
            boundary=boundary,
            seconds=length,
            state=str(task["state"]),
            tries=int(str(task["try_number"])),
            xcoms=lines is not None and ended and self._read(dag_id, run_id) == lines + 1,
            log_whole=lines is not None and self._whole_log(dag_id, run_id, lines),
            seconds_to_report=round(took, 1),
            note=f"edge_job: {self._peer.job_of(dag_id, run_id)}"
            + ("" if ended else f"; not over {took:.0f} s later"),
        )

    def _lines(self, dag_id: str, run_id: str) -> int | None:
        try:
            return int(self._airflow.xcom(dag_id, run_id, "work"))
        except KeyError:
            return None

    def _read(self, dag_id: str, run_id: str) -> int | None:
        try:
            return int(self._airflow.xcom(dag_id, run_id, "read"))
        except KeyError:
            return None

    def _whole_log(self, dag_id: str, run_id: str, lines: int) -> bool:
        def whole() -> bool:
            return is_whole("\n".join(self._airflow.log(dag_id, run_id, "work")), lines)

        return self._await(whole, 30)

    @staticmethod
    def _await(condition: object, seconds: float) -> bool:
        assert callable(condition)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(1)
        return False


def main() -> None:
    """Run edge3's part of the matrix."""
    asked = arguments()
    seconds = [float(each) for each in asked.seconds.split(",")]
    queues = [f"cut-{length:g}" for length in seconds]
    with tempfile.TemporaryDirectory(prefix="airbridge-edge3-") as folder, Network() as network:
        home, files, dags = Path(folder) / "home", Path(folder) / "files", Path(folder) / "dags"
        Path(folder).chmod(0o755)  # Postgres does not run as root
        files.mkdir()
        dags.mkdir()
        source = DAG_FILE.read_text().replace("QUEUES: list[str] = []", f"QUEUES: list[str] = {queues!r}")
        (dags / DAG_FILE.name).write_text(source)
        peer = CutOff(
            "edge3",
            "airflow.providers.edge3.executors.EdgeExecutor",
            peers.environment(PEERS_VENV, uv()),
            home,
            dags,
            network=network,
            queues=queues,
        )
        try:
            peer.start()
            Matrix._await(lambda: peer.workers_known() == len(queues), 240)
            with AirflowRest(peer.base_url) as airflow:
                matrix = Matrix(peer, airflow, files, weather.KINDS[asked.weather])
                matrix.run(seconds)
        finally:
            peer.stop()
    write(asked.out, merged(read(asked.out), matrix.cells))
    print(table(matrix.cells))


if __name__ == "__main__":
    main()
