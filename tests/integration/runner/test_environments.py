from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from tests.integration.runner.world import World

from airbridge.edge_worker.runner import process

FILE = """
# {salt}
import os, subprocess, sys
from datetime import datetime
from pathlib import Path
import tiny
from airflow.providers.tiny.hooks import TinyHook
from airflow.sdk import DAG, task

DATA = Path(tiny.__file__).with_name("data.txt").read_text()

def denied(place):
    try:
        place.write_text("x")
    except OSError:
        return True
    return False

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def t():
        import packaging
        root = Path(os.environ["AIRBRIDGE_PACKAGES"])
        env = {{**os.environ, "PYTHONPATH": str(root)}}
        child = subprocess.run([sys.executable, "-c", "import tiny; print(tiny.VERSION)"], env=env, capture_output=True, text=True)
        return {{
            "version": tiny.VERSION, "data": DATA, "hook": TinyHook.name, "child": child.stdout.strip(),
            "denied": [denied(root / "tiny" / "__init__.py"), denied(root / "new.py"), denied(root / "tiny" / "data.txt")],
            "pth_ran": "tiny_pth" in sys.modules, "packaging": hasattr(packaging, "__version__"),
        }}
    t()
"""


def environment(world: World, version: str) -> Path:
    """Make an unpacked environment: a module with data, a provider, a module of the platform's, and code that would run at start."""
    root = world.folder / "bundles" / f"environment-{version}"
    files = {
        "tiny/__init__.py": f'VERSION = "{version}"\n',
        "tiny/data.txt": f"data of {version}",
        "airflow/providers/tiny/hooks.py": f'class TinyHook:\n    name = "hook {version}"\n',
        "packaging/__init__.py": "",
        "tiny_pth.py": "",
        "tiny.pth": "import tiny_pth\n",
        "sitecustomize.py": "import tiny_pth\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_two_versions_on_one_worker(world: World) -> None:
    """Tasks of two bundles have each its own version of a package, warm and cold, with its data files and providers.

    None can write to it, what is the platform's stays the platform's, and nothing runs because it is on the path.
    """
    for version in ("1.0", "2.0"):
        packages = environment(world, version)
        root = world.write(FILE.format(salt=version))
        for warm in (True, False):
            run = world.do(world.run(root, "t", warm=warm, environment=packages))
            assert run.proxy.pushed() == {
                "version": version,
                "data": f"data of {version}",
                "hook": f"hook {version}",
                "child": version,
                "denied": [True, True, True],
                "pth_ran": False,
                "packaging": True,
            }, run.log
            assert run.task.warm is warm


DISCOVERED = """
# {salt}
from datetime import datetime
from airflow.sdk import DAG, ObjectStoragePath, task

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def t(day):
        return {{"macro": day, "stored": ObjectStoragePath("plugged://a/b").read_text(), "heard": __import__("plugged").HEARD}}
    t("{{{{ macros.plugged.double(21) }}}}")
"""

PLUGGED = {
    "plugged/__init__.py": """
from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

HEARD = []

def double(number):
    return 2 * number

class Listener:
    @hookimpl
    def on_task_instance_running(self, previous_state, task_instance):
        HEARD.append(task_instance.task_id)

class Plugged(AirflowPlugin):
    name = "plugged"
    macros = [double]
    listeners = [Listener()]

def provider():
    return {"package-name": "plugged", "name": "Plugged", "description": "", "filesystems": ["plugged.files"]}
""",
    "plugged/files.py": """
from fsspec.implementations.memory import MemoryFileSystem

schemes = ["plugged"]

def get_fs(conn_id, storage_options):
    found = MemoryFileSystem()
    found.pipe("/a/b", b"content")
    return found
""",
    "plugged-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n",
    "plugged-1.0.dist-info/entry_points.txt": """
[apache_airflow_provider]
provider_info = plugged:provider
[airflow.plugins]
plugged = plugged:Plugged
""",
}


def test_providers_and_plugins_are_found(world: World) -> None:
    """A bundle's packages may have providers with file systems, and plugins with macros and listeners; other bundles do not have them."""
    packages = world.folder / "bundles" / "environment-plugged"
    for name, text in PLUGGED.items():
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text(text)
    for warm in (True, False):
        run = world.do(
            world.run(world.write(DISCOVERED.format(salt=warm)), "t", warm=warm, environment=packages)
        )
        assert run.proxy.pushed() == {"macro": "42", "stored": "content", "heard": ["t"]}, run.log
        assert run.task.warm is warm
    run = world.do(world.run(world.write(DISCOVERED.format(salt="without")), "t"))
    assert "'plugged'" in str(run.log)


PLAIN = """
import importlib.util, os
from datetime import datetime
from pathlib import Path
from airflow.sdk import DAG, task

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def t():
        try:
            read = Path({place!r}).read_text()
        except OSError:
            read = None
        return [importlib.util.find_spec("tiny") is not None, read, os.environ.get("AIRBRIDGE_PACKAGES")]
    t()
"""


def test_no_environment_is_left_behind(world: World) -> None:
    """A bundle without an environment neither imports nor reads another's."""
    packages = environment(world, "3.0")
    world.do(world.run(world.write(FILE.format(salt="3.0")), "t", environment=packages))
    root = world.write(PLAIN.format(place=str(packages / "tiny" / "data.txt")))
    run = world.do(world.run(root, "t"))
    assert run.proxy.pushed() == [False, None, None], run.log


LATE = """
# {salt}
from datetime import datetime
from airflow.sdk import DAG, task

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def t():
        import late, tiny
        return [late.VALUE, tiny.VERSION]
    t()
"""


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("evicted", ["code", "environment"])
def test_fetched_again_after_eviction(world: World, evicted: str, warm: bool) -> None:
    """Code and packages that were evicted and fetched again, at the same path, are found by the next task, which parses the file anew."""

    def fetched() -> dict[str, Path]:
        root = world.write(LATE.format(salt=f"{evicted} {warm}"))
        (root / "late.py").write_text("VALUE = 1")
        return {"code": root, "environment": environment(world, "4.0")}

    for _ in range(2):
        found = fetched()
        run = world.do(world.run(found["code"], "t", warm=warm, environment=found["environment"]))
        assert run.proxy.pushed() == [1, "4.0"], run.log
        shutil.rmtree(found[evicted])


def templates(world: World) -> list[int]:
    children = Path(f"/proc/{world.runner.zygote_pid}/task/{world.runner.zygote_pid}/children").read_text()
    return [pid for pid in map(int, children.split()) if process.name_of(pid) == process.TEMPLATE]


def most_kept(world: World, bound: int) -> int:
    """Return how many templates remain once those that were evicted have ended."""
    for _ in range(200):
        if len(templates(world)) <= bound:
            break
        world.do(asyncio.sleep(0.05))
    return len(templates(world))


@pytest.mark.parametrize(
    ("settings", "bound"), [({"max_templates": 3}, 3), ({"template_memory_bytes": 1, "max_templates": 16}, 1)]
)
def test_ten_environments_stay_in_bounds(tmp_path: Path, settings: dict[str, int], bound: int) -> None:
    """Of ten environments in use on one worker, as many are warm as number and memory allow; each runs, twice."""
    world = World(tmp_path, **settings)
    try:
        for version in [str(number) for number in range(10)] * 2:
            packages = environment(world, version)
            run = world.do(world.run(world.write(FILE.format(salt=version)), "t", environment=packages))
            assert run.proxy.pushed()["version"] == version, run.log
            assert most_kept(world, bound) <= bound
    finally:
        world.close()


MIB = 1024 * 1024


def held(world: World) -> int:
    """Return the memory of all templates, in bytes (PSS)."""
    return sum(map(process.pss_bytes, templates(world)))


def test_large_environments_stay_in_memory(tmp_path: Path) -> None:
    """Ten environments whose module holds 64 MiB: what stays warm is below `template_memory_bytes`, and each task runs."""
    bound = 300 * MIB
    world = World(tmp_path, template_memory_bytes=bound, max_templates=16)
    kept = []
    try:
        for version in map(str, range(10)):
            packages = environment(world, version)
            (packages / "tiny" / "__init__.py").write_text(
                f'VERSION = "{version}"\nBALLAST = b"x" * {64 * MIB}\n'
            )
            run = world.do(world.run(world.write(FILE.format(salt=version)), "t", environment=packages))
            assert run.proxy.pushed()["version"] == version, run.log
            for _ in range(200):
                if held(world) <= bound:
                    break
                world.do(asyncio.sleep(0.05))
            assert held(world) <= bound
            kept.append(len(templates(world)))
    finally:
        world.close()
    assert 2 <= kept[-1] <= 4
