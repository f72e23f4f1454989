"""User code on a worker's host reaches neither the worker nor another task."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.integration.runner.attacks import HEAD
from tests.integration.runner.world import Run, World, alive

from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner import process
from airbridge.executor import landlock

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


def with_victim(world: World, attack: str, *, import_time: str = "") -> tuple[Run, Run]:
    """Start a victim, then run the attack against it; return both."""

    async def scenario() -> tuple[Run, Run]:
        root = world.write(HEAD + import_time + DAG)
        victim = await world.spawn(root, "victim")
        async with asyncio.timeout(20):
            while not list(world.settings.tasks_dir.glob("*/*/more")):
                await asyncio.sleep(0.05)
        target = f"VICTIM = {victim.task.pid}\nROOM = {str(next(world.settings.tasks_dir.glob('*/*')))!r}\n"
        target += f"LOG = {str(victim.log_file)!r}\nSTATE = {str(world.folder)!r}\nAGENT = {os.getpid()}\n"
        attacker = await world.spawn(world.write(HEAD + target + attack + DAG), "attacker")
        world.exit = await attacker.ended()
        assert alive(victim.task.pid)
        victim.task.kill()
        await victim.ended()
        return victim, attacker

    (world.folder / "journal.sqlite").write_text("a grant")
    (world.folder / "join.token").write_text("a secret")
    return world.do(scenario())


def test_no_process_but_its_own_is_open_to_a_task(world: World) -> None:
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
    assert names.count("airbridge task") == 1 and "sleep" in names, names
    return got_through({name(pid): on_process(pid) for pid in others})
"""
    _, attacker = with_victim(world, attack)
    assert attacker.relay.pushed() == [], attacker.log


def test_no_file_of_the_worker_or_of_another_task_is_open_to_a_task(world: World) -> None:
    """Not the journal, the join token, another task's log or working directory: not read, listed, written, moved or
    removed, not by a program that the task starts."""
    attack = """
def result():
    files = [f"{STATE}/journal.sqlite", f"{STATE}/join.token", f"{STATE}/logs", f"{STATE}/t", LOG, ROOM, f"{ROOM}/notes"]
    return got_through({name: on_file(name) for name in files})
"""
    _, attacker = with_victim(world, attack)
    assert attacker.relay.pushed() == [], attacker.log
    assert (world.folder / "journal.sqlite").read_text() == "a grant"


def test_a_task_cannot_change_what_later_tasks_will_run(world: World) -> None:
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
    assert attacker.relay.pushed() == [[], []], attacker.log


def test_import_time_code_is_walled_in_too(world: World) -> None:
    """A DAG file reaches, as it is parsed ahead of its tasks, no other DAG's tasks and no file of the worker."""
    attack = """
AT_IMPORT = got_through({
    **{Path(f"/proc/{pid}/comm").read_text().strip(): on_process(pid) for pid in [*ancestors(), VICTIM]},
    **{name: {"read": denied(Path(name).read_bytes), "list": denied(os.listdir, name)}
       for name in [f"{STATE}/journal.sqlite", LOG, ROOM, f"{STATE}/t"]},
})
def result():
    return AT_IMPORT
"""
    _, attacker = with_victim(world, attack)
    assert attacker.relay.pushed() == [], attacker.log


def test_a_template_cannot_have_its_supervisor_kill_for_it(world: World) -> None:
    """A DAG file that has its template pass off somebody else's process as its task gets no task, and nobody is killed."""

    async def scenario() -> None:
        victim = await world.spawn(world.write(HEAD + DAG), "victim")
        forging = f"""
from airbridge.edge_worker.runner import template
def forged(self, leash, fds):
    leash.task = {victim.task.pid}
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


def test_nonsense_from_a_template_hurts_only_its_own_file(world: World) -> None:
    """What is no message ends the template; the zygote and the other files' templates go on."""
    nonsense = """
import stat
for entry in os.listdir("/proc/self/fd"):
    try:
        with socket.socket(fileno=os.dup(int(entry))) as held:
            if held.type == socket.SOCK_SEQPACKET:
                held.send(b"x")
    except OSError:
        pass
def result():
    return "ran"
"""
    zygote = world.runner.zygote_pid
    run = world.do(world.run(world.write(HEAD + nonsense + DAG), "attacker"))
    assert run.relay.pushed() == "ran"
    assert not run.task.warm
    assert world.runner.zygote_pid == zygote


def test_a_file_that_closes_what_it_did_not_open_is_walled_in_all_the_same(world: World) -> None:
    """What its template keeps open, to wall tasks in by, is then looked up by its path."""
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
        for name in [f"{STATE}/journal.sqlite", LOG, ROOM, f"{STATE}/t"]
    })]
"""
    _, attacker = with_victim(world, attack)
    assert attacker.relay.pushed() == [True, []], attacker.log


def test_a_task_holds_no_descriptor_but_its_own(world: World) -> None:
    """Every socket it has was made by its supervisor: neither the relay's nor the runner's is among them."""
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
        elif STATE in target or os.path.isdir(target):  # a template keeps places open that it walls tasks in by
            files.append(target)
    return [[Path(f"/proc/{pid}/comm").read_text().strip() for pid in makers], files]
"""
    _, attacker = with_victim(world, attack)
    assert attacker.relay.pushed() == [[process.SUPERVISOR], []], attacker.log


def test_a_task_has_a_working_directory_of_its_own_until_it_ends(world: World) -> None:
    """It is the working directory and the place of temporary files, empty at first, and gone afterwards."""
    code = (
        HEAD
        + """
def result():
    before = os.listdir()
    handle, name = tempfile.mkstemp()
    Path("here").write_text("x")
    return [before, os.getcwd() == os.environ["TMPDIR"] == str(Path(name).parent), os.getcwd()]
"""
        + DAG
    )
    run = world.do(world.run(world.write(code), "attacker"))
    before, same, room = run.relay.pushed()
    assert (before, same) == ([], True)
    world.do(asyncio.sleep(0.5))
    assert not Path(room).exists()


def test_a_task_gains_no_privileges(world: World) -> None:
    """No set-user-id program gives any, and of root's powers those are gone that lead around the walls."""
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
    no_new, effective, bounding = run.relay.pushed()
    sys_ptrace, sys_admin, mknod, perfmon = 19, 21, 27, 38
    assert no_new == "1"
    for number in (sys_ptrace, sys_admin, mknod, perfmon):
        assert not (effective | bounding) & (1 << number)
