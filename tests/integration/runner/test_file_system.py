"""A task finds the file system that it knows from LocalExecutor, wherever the state directory lies."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from tests.integration.runner.attacks import HEAD, TAIL
from tests.integration.runner.world import Run, World

from airbridge.core.sandbox import landlock, mounts

pytestmark = [
    pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock"),
    pytest.mark.skipif(not mounts.available(), reason="processes can have no mounts of their own here"),
]

# Directories that a state directory is put below; the second stands for a home directory.
BELOW = ("/tmp", "home", "/var/lib")


@pytest.fixture(scope="module", params=BELOW)
def placed(request: pytest.FixtureRequest) -> Iterator[World]:
    """A runner whose state directory lies two directories below one of `BELOW`."""
    below = Path.home() if request.param == "home" else Path(request.param)
    if not os.access(below, os.W_OK):
        pytest.skip(f"{below} cannot be written to")
    root = Path(tempfile.mkdtemp(prefix="ab-", dir=below))
    (root / "deep" / "state").mkdir(parents=True)
    (root / "deep" / "state" / "journal.sqlite").write_text("a grant")
    world = World(root / "deep" / "state")
    try:
        yield world
    finally:
        world.close()
        shutil.rmtree(root)


def ran(world: World, code: str, task_id: str = "t") -> Run:
    head = f"STATE = {str(world.folder)!r}\n"
    return world.do(world.run(world.write(HEAD + head + code + TAIL), task_id))


def test_directories_above_are_listed(placed: World) -> None:
    """Every directory above the state directory shows what it shows outside."""
    before = listing(placed.folder.parents)
    run = ran(placed, "def result():\n    return {str(p): os.listdir(p) for p in Path(STATE).parents}\n")
    after = listing(placed.folder.parents)
    listed = run.proxy.pushed()
    assert listed is not None, run.log
    for path in before:
        # Other programs make and remove files there meanwhile.
        assert before[path] & after[path] <= set(listed[path]) <= before[path] | after[path] or path == "/tmp"


def listing(directories: Iterable[Path]) -> dict[str, set[str]]:
    """Return the names in each directory."""
    return {str(path): {each.name for each in path.iterdir()} for path in directories}


def test_files_are_made_in_common_places(placed: World) -> None:
    """In literal /tmp and /var/tmp, in HOME, /dev/shm and tempfile's place; and they are seen outside, but for the last."""
    code = """
def result():
    made = []
    for place in ("/tmp", "/var/tmp", str(Path.home()), "/dev/shm", tempfile.gettempdir()):
        file = Path(place, f"airbridge-{os.getpid()}")
        file.mkdir()
        (file / "inside").write_text("x")
        made.append(str(file))
    return made
"""
    run = ran(placed, code)
    made = [Path(path) for path in run.proxy.pushed() or ()]
    assert len(made) == 5, run.log
    for path in made[:-1]:
        assert (path / "inside").read_text() == "x"
        shutil.rmtree(path)


def test_files_pass_between_tasks(placed: World) -> None:
    """One task reads from literal /tmp what another DAG file's task and another program have put there."""
    with tempfile.NamedTemporaryFile(dir="/tmp", prefix="airbridge-") as outside:
        Path(outside.name).write_text("outside")
        writes = f"def result():\n    Path({outside.name + '-next'!r}).write_text('task')\n"
        assert ran(placed, writes).proxy.states == ["success"]
        names = [outside.name, outside.name + "-next"]
        reads = f"def result():\n    return [Path(name).read_text() for name in {names!r}]\n"
        run = ran(placed, reads)
        Path(names[1]).unlink()
    assert run.proxy.pushed() == ["outside", "task"], run.log


def test_hidden_files_stay_closed(placed: World) -> None:
    """The state directory is not read, listed, altered, nor moved by the directories above it."""
    code = """
def result():
    state = Path(STATE)
    ways = [on_file(state / name) for name in ("journal.sqlite", "logs", "t")]
    return got_through({
        **{str(number): each for number, each in enumerate(ways)},
        "above": {
            **{f"move {path}": denied(path.rename, "/tmp/moved") for path in (state, *state.parents)},
            **{f"exchange {path}": denied(os.rename, tempfile.mkdtemp(dir="/tmp"), path) for path in (state, state.parent)},
            "add to the state": denied((state / "planted").mkdir),
            "by the working directory": denied(os.listdir, STATE + "/bundles/../t"),
            "by a link": denied(lambda: (os.symlink(STATE, "link"), Path("link/journal.sqlite").read_bytes())),
            "unmount": LIBC.umount2(STATE.encode(), 2) != 0,
            "namespace": subprocess.run(["unshare", "-Urm", "umount", STATE], capture_output=True).returncode != 0,
        },
    })
"""
    run = ran(placed, code)
    assert run.proxy.pushed() == [], run.log
    assert (placed.folder / "journal.sqlite").read_text() == "a grant"


def test_task_of_same_file_is_closed(placed: World) -> None:
    """Two tasks of one DAG file neither read nor write each other's working directory."""
    code = """
with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def victim():
        Path("notes").write_text("mine")
        time.sleep(60)
    victim()

def result():
    others = [each for each in Path.cwd().parent.iterdir() if each != Path.cwd()]
    assert others
    return [denied((each / "notes").read_bytes) and denied((each / "more").write_text, "x") for each in others]
"""

    async def both() -> list[bool]:
        import asyncio

        root = placed.write(HEAD + code + TAIL.replace('DAG("d"', 'DAG("e"'))
        victim = await placed.spawn(root, "victim")
        while not list(placed.settings.tasks_dir.glob("*/*/notes")):
            await asyncio.sleep(0.05)
        attacker = await placed.run(root, "t", dag_id="e")
        victim.task.kill()
        await victim.ended()
        pushed: list[bool] = attacker.proxy.pushed()
        assert pushed is not None, attacker.log
        return pushed

    assert placed.do(both()) == [True]
