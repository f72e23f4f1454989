"""Modules that are loaded before the first fork: every task pays for a late import."""

from __future__ import annotations

from pathlib import Path

from tests.integration.runner.world import World

FILE = """
import sys
AT_IMPORT = sorted(sys.modules)
from datetime import datetime
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, get_current_context, task

def late(context):
    print("late:", sorted(set(sys.modules) - set(AT_IMPORT)))

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task(on_success_callback=late)
    def t(day):
        get_current_context()["ti"].xcom_push("key", [day])
        return {"a": 1}
    t("{{ ds }}")
    BashOperator(task_id="bash", bash_command="echo {{ ds }}", on_success_callback=late)
"""


def test_task_imports_only_its_file(world: World) -> None:
    """From parsing its file to its callbacks, the only new modules are the DAG file's own."""
    root = world.write(FILE)
    for task_id in ("t", "bash"):
        run = world.do(world.run(root, task_id, warm=False))
        (line,) = [each["event"] for each in run.events if each["event"].startswith("late:")]
        late = [name for name in line.removeprefix("late: ").strip("[]").replace("'", "").split(", ") if name]
        # Airflow's DagBag imports a DAG file under a name with this prefix.
        assert [name for name in late if not name.startswith("unusual_prefix_")] == []


def test_wanted_modules_are_preloaded(tmp_path: Path) -> None:
    """``preload`` names modules to load besides; one that does not exist does not prevent the start."""
    world = World(tmp_path, preload=("colorsys", "no.such.module"))
    try:
        root = world.write(FILE.replace('return {"a": 1}', "return 'colorsys' in AT_IMPORT"))
        assert world.do(world.run(root, "t")).proxy.pushed() is True
    finally:
        world.close()
