"""A trigger host beside the process of Airflow's triggerer that runs its triggers, each alone with the same triggers.

    python -m tests.benchmarks.bench_trigger_host --count 5000 --seconds 30

Each trigger looks for a file every ten seconds. Control plane, database and the triggerer's other process are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks import processes
from tests.integration.runner.test_trigger_host import attempt_of, hosting
from tests.integration.runner.world import World

CLASSPATH = "airflow.providers.standard.triggers.file.FileTrigger"
MIB = 1024 * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=30.0)
    choices = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        world = World(Path(folder))
        try:
            world.do(ours(world, choices.count, choices.seconds))
        finally:
            world.close()
    theirs(choices.count, choices.seconds)


async def ours(world: World, count: int, seconds: float) -> None:
    """Measure a host; the other processes of the runner are there for tasks as well."""
    root = world.write("", "empty.py")
    async with hosting(world, root) as bench:
        bench.add(root, "first", CLASSPATH, filepath="/nonexistent/file", poke_interval=10.0)
        await asyncio.sleep(5)
        pids = [pid for pid in processes.tree([world.runner.zygote_pid or 0]) if _title(pid) == "triggers"]
        before = sum(processes.pss_bytes(pids).values())
        for number in range(count - 1):
            bench.host.add(
                attempt_of(
                    world, root, f"t{number}", CLASSPATH, filepath="/nonexistent/file", poke_interval=10.0
                )
            )
            if number % 100 == 0:
                await asyncio.sleep(0.01)
        await asyncio.sleep(20)
        await _report("AirBridge's host", pids, before, count, seconds)


def _title(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()
    return "triggers" if words[:3] == ["airbridge", "task", "triggers"] else ""


def theirs(count: int, seconds: float) -> None:
    """Measure Airflow's `TriggerRunner`, without its supervisor."""
    ready = multiprocessing.get_context("spawn").Event()
    process = multiprocessing.get_context("spawn").Process(target=_runner, args=(count, ready))
    process.start()
    ready.wait(600)
    pids = [process.pid or 0]
    asyncio.run(_report("Airflow's TriggerRunner", pids, 0, count, seconds))
    process.kill()


def _runner(count: int, ready: Any) -> None:
    from airflow.executors import workloads
    from airflow.jobs.triggerer_job_runner import TriggerRunner
    from airflow.models.trigger import Trigger

    class Alone(TriggerRunner):  # type: ignore[misc] # Airflow publishes no types
        async def init_comms(self) -> None:
            pass

        async def sync_state_to_supervisor(self, _finished: list[int]) -> None:
            if len(self.triggers) == count:
                ready.set()

    runner = Alone()
    kwargs = Trigger.encrypt_kwargs({"filepath": "/nonexistent/file", "poke_interval": 10.0})
    runner.to_create.extend(
        workloads.RunTrigger(classpath=CLASSPATH, id=number, encrypted_kwargs=kwargs, ti=None)
        for number in range(count)
    )
    runner.run()


async def _report(name: str, pids: list[int], before: int, count: int, seconds: float) -> None:
    cpu, began = processes.cpu_seconds(pids), time.monotonic()
    await asyncio.sleep(seconds)
    used = 100 * (processes.cpu_seconds(pids) - cpu) / (time.monotonic() - began)
    memory = sum(processes.pss_bytes(pids).values())
    more = f", {(memory - before) / MIB:.1f} MiB more than with one" if before else ""
    print(f"{name}: {count} triggers, {used:.1f} % of a core, {memory / MIB:.1f} MiB{more}", flush=True)


if __name__ == "__main__":
    main()
