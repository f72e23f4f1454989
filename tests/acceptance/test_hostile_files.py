"""DAG files that a fork could break: at the edge, where tasks start from a parsed file, they do what they do under LocalExecutor.

Each file makes two DAGs, ``<name>__edge`` and ``<name>__local``, of two tasks that run one after the other and return
what they find. Both must find the same. tests/integration/runner/test_hostile_files.py shows how they are detected.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.platform import LocalPlatform, Run, wait_for

HEAD = """
import os, random, socket, sqlite3, threading, time
from datetime import datetime
from airflow.sdk import DAG, get_parsing_context, task
"""

TAIL = """
for variant, executor in (("edge", None), ("local", "LocalExecutor")):
    dag_id = f"NAME__{variant}"
    if not wanted(dag_id):
        continue
    with DAG(dag_id, schedule=None, default_args={"executor": executor}) as dag:
        @task
        def first():
            return finds()

        @task
        def second():
            return finds()

        first() >> second()
    globals()[dag_id] = dag
"""

ANY = "def wanted(dag_id):\n    return True\n"

FILES = {
    "threads_at_import": (
        ANY
        + "ticks = []\n"
        + "def tick():\n    while True:\n        ticks.append(1)\n        time.sleep(0.01)\n"
        + "ticker = threading.Thread(target=tick, daemon=True)\nticker.start()\n"
        + "def finds():\n    before = len(ticks)\n    time.sleep(0.5)\n"
        + "    return {'alive': ticker.is_alive(), 'ticks': len(ticks) > before, 'threads': threading.active_count()}\n"
    ),
    "database_at_import": (
        ANY
        + "db = sqlite3.connect(':memory:')\ndb.execute('create table seen (pid int)')\n"
        + "near, far = socket.socketpair()\n"
        + "def finds():\n    db.execute('insert into seen values (1)')\n    far.send(b'x')\n"
        + "    rows = db.execute('select count(*) from seen').fetchone()[0]\n"
        + "    return {'rows': rows, 'bytes': len(near.recv(10))}\n"
    ),
    "random_seed": (
        ANY
        + "random.seed(42)\ndrawn = random.random()\n"
        + "def finds():\n    return {'at import': drawn, 'in the task': random.random()}\n"
    ),
    "module_counter": (
        ANY
        + "count = 0\nseen = []\n"
        + "def finds():\n    global count\n    count += 1\n    seen.append(count)\n    return {'count': count, 'seen': len(seen)}\n"
    ),
    "parsing_context": (
        "context = get_parsing_context()\nbuilt = []\n"
        "def wanted(dag_id):\n    if context.dag_id not in (None, dag_id):\n        return False\n"
        "    built.append(dag_id)\n    return True\n"
        "def finds():\n    return {'built': len(built), 'task': context.task_id}\n"
    ),
    "changes_itself": (
        ANY
        + "os.environ['AIRBRIDGE_TEST_PARSED'] = str(int(os.environ.get('AIRBRIDGE_TEST_PARSED', 0)) + 1)\n"
        + "def finds():\n    return {'parsed': os.environ['AIRBRIDGE_TEST_PARSED'], 'cwd': os.path.isdir(os.getcwd())}\n"
    ),
}

VARIANTS = ("edge", "local")


def content(name: str, body: str) -> str:
    return HEAD + body + TAIL.replace("NAME", name)


def versions(platform: LocalPlatform, name: str) -> dict[str, str]:
    """The bundle version that each variant was parsed from last."""
    statement = "SELECT dag_id, bundle_version FROM dag WHERE dag_id LIKE %s"
    return dict(platform.query(statement, f"{name}\\_\\_%"))


def renewed(before: dict[str, str], now: dict[str, str]) -> bool:
    return len(now) == len(VARIANTS) and all(now[dag_id] != before.get(dag_id) for dag_id in now)


def found(platform: LocalPlatform, name: str) -> dict[str, list[Any]]:
    """Run both variants; return the state of each run and what its tasks found."""
    runs: dict[str, Run] = {}
    started = {variant: platform.trigger(f"{name}__{variant}") for variant in VARIANTS}
    for variant, run_id in started.items():
        runs[variant] = platform.finish(f"{name}__{variant}", run_id, 180.0)
    return {
        variant: [run.state, *(platform.xcom(run, task_id) for task_id in ("first", "second"))]
        for variant, run in runs.items()
    }


@pytest.fixture(scope="module")
def hostile(platform: LocalPlatform) -> LocalPlatform:
    """The platform with all files in its DAGs folder: one publication for all."""
    for name, body in FILES.items():
        platform.add_dag(name, content(name, body))
    return platform


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(FILES))
def test_hostile_file_as_under_local_executor(hostile: LocalPlatform, name: str) -> None:
    """Both tasks of the edge's run find what both of LocalExecutor's run find."""
    both = found(hostile, name)
    assert both["local"][0] == "success"
    assert both["local"] == both["edge"]


@pytest.mark.timeout(300)
def test_a_changed_file_runs_as_changed(hostile: LocalPlatform) -> None:
    """A run after the change runs the new code on either executor, though the old one has been parsed and used."""
    name = "changed_file"
    for value in ("old", "new"):
        body = f"{ANY}VALUE = {value!r}\ndef finds():\n    return VALUE\n"
        before = versions(hostile, name)
        hostile.add_dag(name, content(name, body))
        wait_for(lambda: renewed(before, versions(hostile, name)), "the change to be parsed", 60.0)  # noqa: B023
        both = found(hostile, name)
        assert both["edge"] == both["local"] == ["success", value, value]
