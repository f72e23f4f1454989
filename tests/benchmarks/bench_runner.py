"""Cost of a task on a worker: CPU per no-op task, and PSS per sleeping task. Measured and printed, never asserted.

Run with ``make bench-runner``; writes ``tests/benchmarks/results/runner.json``. The execution API proxy is a fake one in this process,
so the agent's own work is not in the figures; the zygote's, the template's, the supervisor's and the task's is.

Warm tasks of a file that imports pandas from an environment run in turn with those of a file without, in rounds. The environment is installed from the
package index; ``--only-warm`` leaves it out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.integration.runner.world import Run, World

from airbridge.edge_worker.runner import process

RESULTS = Path(__file__).parent / "results" / "runner.json"

PACKAGES = ("pandas==2.2.3",)
ROUNDS = 5

FILE = """
from datetime import datetime
from airflow.sdk import DAG, task

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def noop():
        return None

    @task
    def sleep():
        import time
        time.sleep(600)

    noop()
    sleep()
    for number in range(98):
        noop.override(task_id=f"noop_{number}")()
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--sleepers", type=int, default=20)
    parser.add_argument(
        "--only-warm", action="store_true", help="leave out the tasks that parse their file themselves"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="airbridge-bench-") as folder:
        world = World(Path(folder))
        try:
            figures = _measure(world, options)
        finally:
            world.close()
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def _measure(world: World, options: argparse.Namespace) -> dict[str, object]:
    root = world.write(FILE)
    figures: dict[str, object] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": round(os.getloadavg()[0], 2),
    }
    figures["warm"] = _no_ops(world, root, options.tasks, warm=True)
    if not options.only_warm:
        figures["cold"] = _no_ops(world, root, max(1, options.tasks // 5), warm=False)
    figures["sleeping"] = world.do(_sleepers(world, root, options.sleepers))
    if not options.only_warm:
        figures["environment"] = _environment(world, root, options.tasks)
    return figures


def _environment(world: World, plain: Path, count: int) -> dict[str, object]:
    """Measure warm tasks in turn: without an environment, in one that the file imports nothing from, and of a file with pandas."""
    packages = world.folder / "bundles" / "packages"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "pip", "install", "--quiet", "--target", packages, *PACKAGES], check=True)
    files = {
        "without": (plain, None),
        "nothing imported": (world.write(FILE + "# in an environment\n"), packages),
        "pandas imported": (world.write("import pandas\n" + FILE), packages),
    }
    pss = {}
    for name, (root, environment) in files.items():
        before = set(_templates(world))
        world.do(world.run(root, "noop", environment=environment))
        pss[name] = max(map(process.pss_bytes, set(_templates(world)) - before or before))
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        for name, (root, environment) in files.items():
            rounds[name].append(_no_ops(world, root, count, warm=True, environment=environment))
    medians = {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]}
        for name, found in rounds.items()
    }
    memory = {name: round(value / 1024 / 1024, 1) for name, value in pss.items()}
    return {"packages": list(PACKAGES), "warm": medians, "template_pss_mib": memory}


def _no_ops(world: World, root: Path, count: int, **options: Any) -> dict[str, float]:
    world.do(world.run(root, "noop", **options))
    before = _spent(world)
    walls = []
    for _ in range(count):
        start = time.perf_counter()
        world.do(world.run(root, "noop", **options))
        walls.append(time.perf_counter() - start)
    time.sleep(0.2)  # what the last task leaves to do
    spent = [now - then for now, then in zip(_spent(world), before, strict=True)]
    user, system, faults = (value / count for value in spent)
    return {
        "cpu_ms_per_task": round((user + system) * 1000, 1),
        "of_which_in_the_kernel": round(system * 1000, 1),
        "page_faults_per_task": round(faults),
        "wall_ms_p50": round(statistics.median(walls) * 1000, 1),
    }


async def _sleepers(world: World, root: Path, count: int) -> dict[str, float]:
    runs: list[Run] = [await world.spawn(root, "sleep") for _ in range(count)]
    await asyncio.sleep(3)
    base = sum(map(process.pss_bytes, [world.runner.zygote_pid or 0, *_templates(world)]))
    supervisors = [process.pss_bytes(run.task.pid) for run in runs]
    tasks = [process.pss_bytes(task) for template in _templates(world) for task in _children(template)]
    for run in runs:
        run.task.kill()
        await run.ended()
    mib = 1024 * 1024
    return {
        "count": count,
        "pss_mib_per_supervisor": round(statistics.mean(supervisors) / mib, 1),
        "pss_mib_per_task_process": round(statistics.mean(tasks) / mib, 1),
        "pss_mib_per_running_task": round((sum(supervisors) + sum(tasks)) / count / mib, 1),
        "pss_mib_zygote_and_template": round(base / mib, 1),
    }


def _templates(world: World) -> list[int]:
    return [
        pid for pid in _children(world.runner.zygote_pid or 0) if process.name_of(pid) == process.TEMPLATE
    ]


def _family(pid: int) -> list[int]:
    return [pid, *(each for child in _children(pid) for each in _family(child))]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _spent(world: World) -> tuple[float, float, float]:
    """User and system seconds, and minor page faults, of all that the zygote has forked, itself included, dead or alive."""
    user = system = faults = 0
    for pid in _family(world.runner.zygote_pid or 0):
        fields = [int(each) for each in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1:]]
        user += fields[10] + fields[12]
        system += fields[11] + fields[13]
        faults += fields[6] + fields[7]
    ticks = os.sysconf("SC_CLK_TCK")
    return user / ticks, system / ticks, float(faults)


if __name__ == "__main__":
    main()
