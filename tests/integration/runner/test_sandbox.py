"""User code on a worker's host reaches neither the worker nor another task."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.runner.attacks import HEAD
from tests.integration.runner.world import Run, World, alive

from airbridge.core.residency.settings import SECRETS
from airbridge.core.sandbox import landlock
from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.proxy.protocol import Call, Reply
from airbridge.edge_worker.runner import process
from airbridge.edge_worker.runner.sandbox import short_path

pytestmark = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")

DAG = """
with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def victim():
        Path("notes").write_text("mine")
        Path(os.environ["TMPDIR"], "more").write_text("mine")
        subprocess.Popen(["sleep", "60"])
        time.sleep(60)

    @task
    def attacker():
        return result()

    victim(), attacker()
"""


def with_victim(world: World, attack: str, *, ready: Callable[[], object] = lambda: None) -> tuple[Run, Run]:
    """Start a victim, call `ready`, then run the attack against it; return both."""

    async def scenario() -> tuple[Run, Run]:
        root = world.write(HEAD + DAG)
        victim = await world.spawn(root, "victim")
        async with asyncio.timeout(20):
            # The victim writes this file last: from then on there is something to attack.
            while not list(world.settings.tasks_dir.glob("*/*/more")):
                await asyncio.sleep(0.05)
        ready()
        target = f"VICTIM = {victim.task.pid}\nFOLDER = {str(next(world.settings.tasks_dir.glob('*/*')))!r}\n"
        target += f"LOG = {str(victim.log_file)!r}\nSTATE = {str(world.folder)!r}\nAGENT = {os.getpid()}\n"
        attacker = await world.spawn(world.write(HEAD + target + attack + DAG), "attacker")
        world.exit = await attacker.ended()
        assert alive(victim.task.pid)
        victim.task.kill()
        await victim.ended()
        return victim, attacker

    # Decoys with the names of the real files, in the directory that the runner hides.
    (world.folder / "journal.sqlite").write_text("a grant")
    (world.folder / "join.token").write_text("a secret")
    return world.do(scenario())


def test_other_processes_are_closed(world: World) -> None:
    """Not agent, zygote, template or supervisor, nor another task, its supervisor or its children: no memory, no
    environment, no descriptor, no signal, no ptrace; whatever user the worker runs as."""
    attack = """
def below(pid):
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [more for child in found for more in below(child)]

def name(pid):
    return Path(f"/proc/{pid}/comm").read_text().strip()

def result():
    (zygote,) = [pid for pid in ancestors() if name(pid) == "airbridge-zyg"]
    others = {*ancestors(), *below(zygote)} - {os.getpid()}
    names = [name(pid) for pid in others]
    assert AGENT in others and VICTIM in others and names.count("airbridge-sup") >= 2
    # Guard against a test that attacks nothing.
    assert names.count("airbridge task") == 1 and "sleep" in names, names
    return got_through({name(pid): on_process(pid) for pid in others})
"""
    _, attacker = with_victim(world, attack)
    assert attacker.proxy.pushed() == [], attacker.log


def test_other_files_are_closed(world: World) -> None:
    """Not the journal, the join token, another task's log or working directory: not read, listed, written, moved or
    removed, not by a program that the task starts."""
    attack = """
def result():
    files = [f"{STATE}/journal.sqlite", f"{STATE}/join.token", f"{STATE}/logs", f"{STATE}/t", LOG, FOLDER, f"{FOLDER}/notes"]
    return got_through({name: on_file(name) for name in files})
"""
    _, attacker = with_victim(world, attack)
    assert attacker.proxy.pushed() == [], attacker.log
    assert (world.folder / "journal.sqlite").read_text() == "a grant"


def test_attributes_of_files_are_closed(world: World) -> None:
    """A task changes no mode, owner, time or extended attribute of the journal, the join token, a log, another DAG's
    working directory, the snapshot and AIRFLOW_HOME: not as a task, not at import, not by a program, not in a namespace."""
    attack = """
def attempts():
    files = [f"{STATE}/journal.sqlite", f"{STATE}/join.token", LOG, FOLDER, f"{FOLDER}/notes", __file__,
             os.environ["AIRFLOW_HOME"] + "/airflow.cfg"]
    return got_through({name: on_attributes(name) for name in files})
AT_IMPORT = attempts()
def result():
    return [AT_IMPORT, attempts()]
"""

    def attributes() -> dict[str, tuple[int, float]]:
        files = [world.folder / "journal.sqlite", world.folder / "join.token"]
        return {str(file): (file.stat().st_mode, file.stat().st_mtime) for file in files}

    before, attacker = attributes_around(world, attack, attributes)
    assert attacker.proxy.pushed() == [[], []], attacker.log
    assert attributes() == before


def attributes_around(world: World, attack: str, attributes: Callable[[], Any]) -> tuple[Any, Run]:
    """Run an attack; return the value of `attributes` before it, and the attacker."""
    seen: list[Any] = []
    _, attacker = with_victim(world, attack, ready=lambda: seen.append(attributes()))
    return seen[0], attacker


ORDINARY = """
import shutil, sys, tarfile, venv, zipfile
def result():
    done = []
    for folder in (Path.cwd() / "mine", Path(tempfile.mkdtemp(dir="/var/tmp"))):
        folder.mkdir(exist_ok=True)
        source = folder / "source"
        source.write_text("x")
        os.chmod(source, 0o750)
        os.utime(source, (1_600_000_000, 1_600_000_000))
        try:
            os.setxattr(source, "user.note", b"x")
        except OSError as error:
            # EOPNOTSUPP: tmpfs may lack user attributes
            if error.errno != 95:
                raise
        shutil.copy2(source, folder / "copy")
        shutil.copytree(folder, Path(str(folder) + "-tree"))
        with tarfile.open(folder / "a.tar", "w") as tar:
            tar.add(source, "in")
        with tarfile.open(folder / "a.tar") as tar:
            tar.extractall(folder / "out")
        with zipfile.ZipFile(folder / "a.zip", "w") as packed:
            packed.write(source, "in")
        venv.create(folder / "venv", with_pip=False, symlinks=True)
        subprocess.run(["cp", "-p", source, folder / "by-cp"], check=True)
        ran = subprocess.run([folder / "venv" / "bin" / "python", "-c", "print(1)"], capture_output=True, check=True)
        stat = (folder / "copy").stat()
        done.append([stat.st_mode & 0o777, int(stat.st_mtime), ran.stdout.decode().strip()])
        shutil.rmtree(Path(str(folder) + "-tree"))
        shutil.rmtree(folder)
    return done
"""


def test_ordinary_file_work_goes_on(world: World) -> None:
    """In a task's own directory and in /var/tmp, chmod, utime, copies with attributes, archives and virtual environments work."""
    run = world.do(world.run(world.write(HEAD + ORDINARY + DAG), "attacker"))
    assert run.proxy.pushed() == [[0o750, 1_600_000_000, "1"]] * 2, run.log


def test_code_is_read_only_for_tasks(world: World) -> None:
    """The snapshot and AIRFLOW_HOME (plugins, configuration) can be read, not written, by import-time code or a task."""
    attack = """
HOME = os.environ["AIRFLOW_HOME"]
def attempts():
    return got_through({"": {
        "alter the snapshot": denied(Path(__file__).write_text, ""),
        "add to the snapshot": denied(Path(__file__).with_name("planted.py").write_text, ""),
        "plant a plugin": denied(os.makedirs, f"{HOME}/plugins"),
        "alter the configuration": denied(Path(HOME, "airflow.cfg").open, "a"),
        "plant a working directory": denied(os.mkdir, f"{STATE}/t/planted"),
    }})
AT_IMPORT = attempts()
def result():
    return [AT_IMPORT, attempts()]
"""
    _, attacker = with_victim(world, attack)
    assert attacker.proxy.pushed() == [[], []], attacker.log


def test_import_time_code_is_sandboxed(world: World) -> None:
    """A DAG file reaches, as it is parsed ahead of its tasks, no other DAG's tasks and no file of the worker."""
    attack = """
AT_IMPORT = got_through({
    **{Path(f"/proc/{pid}/comm").read_text().strip(): on_process(pid) for pid in [*ancestors(), VICTIM]},
    **{name: {"read": denied(Path(name).read_bytes), "list": denied(os.listdir, name)}
       for name in [f"{STATE}/journal.sqlite", LOG, FOLDER, f"{STATE}/t"]},
})
def result():
    return AT_IMPORT
"""
    _, attacker = with_victim(world, attack)
    assert attacker.proxy.pushed() == [], attacker.log


def test_template_cannot_misdirect_supervisor(world: World) -> None:
    """A template that passes off another process as its task gets no task, and that process is not killed."""

    async def scenario() -> None:
        victim = await world.spawn(world.write(HEAD + DAG), "victim")
        forging = f"""
from airbridge.edge_worker.runner import template
def forged(self, handle, fds):
    handle.task = {victim.task.pid}
    os.write(fds[3], b"[]\\n")
    return True
template.Template._fork = forged
result = None
"""
        with pytest.raises(RunnerError, match="no supervisor came up"):
            await world.spawn(world.write(HEAD + forging + DAG), "attacker")
        assert alive(victim.task.pid)
        victim.task.kill()
        await victim.ended()

    world.do(scenario())


def test_invalid_template_message_is_contained(world: World) -> None:
    """An invalid message ends the template; the zygote and the other files' templates go on."""
    nonsense = """
import stat
for entry in os.listdir("/proc/self/fd"):
    try:
        with socket.socket(fileno=os.dup(int(entry))) as held:
            # only the template's channel to the zygote is of this type
            if held.type == socket.SOCK_SEQPACKET:
                held.send(b"x")
    except OSError:
        pass
def result():
    return "ran"
"""
    zygote = world.runner.zygote_pid
    run = world.do(world.run(world.write(HEAD + nonsense + DAG), "attacker"))
    assert run.proxy.pushed() == "ran"
    assert not run.task.warm
    assert world.runner.zygote_pid == zygote


def test_sandbox_survives_closed_descriptors(world: World) -> None:
    """Paths whose descriptors a DAG file has closed are looked up by name."""
    attack = """
for entry in os.listdir("/proc/self/fd"):
    if os.path.isdir(f"/proc/self/fd/{entry}"):
        try:
            os.close(int(entry))
        except OSError:
            pass
def result():
    return [os.path.isdir("/usr/bin"), got_through({
        name: {"read": denied(Path(name).read_bytes), "list": denied(os.listdir, name)}
        for name in [f"{STATE}/journal.sqlite", LOG, FOLDER, f"{STATE}/t"]
    })]
"""
    _, attacker = with_victim(world, attack)
    assert attacker.proxy.pushed() == [True, []], attacker.log


def test_task_has_only_own_descriptors(world: World) -> None:
    """Every socket of a task was made by its supervisor: none is the proxy's or the runner's."""
    attack = """
def result():
    makers, files = set(), []
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith("socket:"):
            with socket.socket(fileno=os.dup(int(entry))) as held:
                makers.add(int.from_bytes(held.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little"))
        elif STATE in target or os.path.isdir(target):  # a template holds directories open for its tasks' sandbox
            files.append(target)
    return [[Path(f"/proc/{pid}/comm").read_text().strip() for pid in makers], files]
"""
    _, attacker = with_victim(world, attack)
    assert attacker.proxy.pushed() == [[process.SUPERVISOR], []], attacker.log


def test_task_has_own_working_directory(world: World) -> None:
    """A task's working directory is also its place for temporary files; it is empty at first, and removed at the end."""
    code = (
        HEAD
        + """
def result():
    before = os.listdir()
    handle, name = tempfile.mkstemp()
    Path("here").write_text("x")
    same = os.path.samefile(os.getcwd(), os.environ["TMPDIR"]) and os.environ["TMPDIR"] == str(Path(name).parent)
    return [before, same, os.getcwd()]
"""
        + DAG
    )
    run = world.do(world.run(world.write(code), "attacker"))
    before, same, working_dir = run.proxy.pushed()
    assert (before, same) == ([], True)
    world.do(asyncio.sleep(0.5))
    assert not Path(working_dir).exists()


def test_a_task_gains_no_privileges(world: World) -> None:
    """Set-user-id programs give no privileges, and root's capabilities that would bypass the sandbox are dropped."""
    code = (
        HEAD
        + """
def result():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return [status["NoNewPrivs"].strip(), int(status["CapEff"], 16), int(status["CapBnd"], 16)]
"""
        + DAG
    )
    run = world.do(world.run(world.write(code), "attacker"))
    no_new, effective, bounding = run.proxy.pushed()
    # Numbers of linux/capability.h.
    sys_ptrace, sys_admin, mknod, perfmon = 19, 21, 27, 38
    assert no_new == "1"
    for number in (sys_ptrace, sys_admin, mknod, perfmon):
        assert not (effective | bounding) & (1 << number)


def test_sockets_fit_beneath_temporary_directory(tmp_path: Path) -> None:
    """A Manager of multiprocessing runs although the state directory is long, and nothing is left of the link to it."""
    code = (
        HEAD
        + """
def result():
    import multiprocessing
    with multiprocessing.Manager() as shared:
        numbers = shared.list([1, 2])
        numbers.append(3)
        return [list(numbers), len(os.environ["TMPDIR"]) < len(os.getcwd())]
"""
        + DAG
    )
    world = World(tmp_path / ("long" * 20))
    try:
        run = world.do(world.run(world.write(code), "attacker"))
        assert run.proxy.pushed() == [[1, 2, 3], True], run.log
        [link] = _links_to(world.settings.tasks_dir)
    finally:
        world.close()
    assert not link.parent.exists()


def test_link_is_closed_to_tasks(tmp_path: Path) -> None:
    """A task cannot lead another one's TMPDIR elsewhere: the short link can be neither removed, replaced nor moved away."""
    code = (
        HEAD
        + """
def result():
    link = Path(os.environ["TMPDIR"]).parents[1]
    assert link.is_symlink()
    return [
        denied(link.unlink),
        denied(link.rename, link.with_name("moved")),
        denied(link.parent.rename, link.parent.with_name(link.parent.name + "-moved")),
        denied((link.parent / "planted").write_text, "x"),
        denied(os.symlink, "/", link.parent / "planted"),
    ]
"""
        + DAG
    )
    world = World(tmp_path / ("long" * 20))
    try:
        run = world.do(world.run(world.write(code), "attacker"))
        assert run.proxy.pushed() == [True] * 5, run.log
    finally:
        world.close()


def test_zygote_starts_without_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a zygote starts it makes no directory where tasks may write: it has no sandbox, and would execute what they put there."""
    shared = tmp_path / "tmp"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    with _watched(shared) as made:
        World(tmp_path / "world").close()
    assert set() == made


@contextmanager
def _watched(folder: Path) -> Iterator[set[str]]:
    """Collect the names of the directories that are made in a directory during the block."""
    made: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            made.update(path.name for path in folder.iterdir() if path.is_dir())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield made
    finally:
        over.set()
        thread.join()


def test_supervisor_has_no_home_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secrets backend, which runs in the supervisor, finds no configuration that a task has written to HOME."""
    library, home = tmp_path / "library", tmp_path / "home"
    for folder in (library, home):
        folder.mkdir()
    (library / "backend_of_test.py").write_text(
        "import os\nclass Backend:\n    def get_variable(self, key):\n        return os.path.expanduser('~')\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(library))
    world = World(tmp_path / "world", options={SECRETS: {"backend": "backend_of_test.Backend"}})

    def places(call: Call, _rest: str) -> Reply:
        return Reply(call.id, 200, {"content-type": "application/json"}, json.dumps({"places": ["region"]}))

    monkeypatch.setattr(world.api, "_regional_secrets", places, raising=False)
    code = (
        HEAD
        + """
from airflow.sdk import Variable
def result():
    Path.home().joinpath("planted").write_text("x")
    return [Variable.get("home") == os.environ["AIRFLOW_HOME"], str(Path.home())]
"""
        + DAG
    )
    try:
        run = world.do(world.run(world.write(code), "attacker"))
        assert run.proxy.pushed() == [True, str(home)], run.log
    finally:
        world.close()


def _links_to(target: Path) -> list[Path]:
    return [link for link in Path(short_path.place() or "/").glob("ab-*/t") if link.readlink() == target]
