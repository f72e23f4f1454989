"""Which protections between tasks and the worker are active on this host, found out by trying."""

from __future__ import annotations

import getpass
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.runner import walls
from airbridge.edge_worker.runner.messages import Source
from airbridge.edge_worker.runner.user import TaskUser
from airbridge.edge_worker.settings import TaskWalls, WorkerSettings
from airbridge.executor import landlock, protection

_NO_LANDLOCK: Final = (
    "this kernel offers no Landlock (Linux 5.13 or later with landlock in its lsm list, and a seccomp profile that lets "
    "its system calls through)"
)


@dataclass(frozen=True)
class Shield:
    """One protection, and what it amounts to here."""

    name: str
    active: bool
    detail: str


def memory() -> Shield:
    """The agent's own memory; makes this process what the agent makes itself."""
    active = protection.harden()
    detail = (
        "the memory, environment and descriptors of agent, runner and tasks are closed to other processes of their user"
        if active
        else "PR_SET_DUMPABLE was refused; the kernel must allow it"
    )
    return Shield("memory protection", active, detail)


def of_tasks(settings: WorkerSettings) -> Iterator[Shield]:
    """What keeps tasks from the worker and from each other."""
    version = landlock.abi()
    if settings.task_walls is TaskWalls.OFF:
        yield Shield(
            "task walls", False, "task_walls is 'off': tasks can read each other's files and the journal"
        )
    elif not version:
        yield Shield("task walls", False, f"{_NO_LANDLOCK}: {_without(settings)}")
    else:
        yield _tried(version)
    yield _user(settings)


def _without(settings: WorkerSettings) -> str:
    if settings.task_user:
        return "tasks can read and signal each other; the worker's own files are closed by their owner"
    return "tasks can read each other's files, the journal and the join token, and signal the worker"


def _user(settings: WorkerSettings) -> Shield:
    if settings.task_user is not None:
        try:
            user = TaskUser.named(settings.task_user)
        except SettingsError as error:
            return Shield("task user", False, str(error))
        return Shield("task user", True, f"tasks run as {user.name} (uid {user.uid}), the agent as another")
    if os.geteuid() == 0:
        return Shield(
            "task user",
            False,
            "tasks run as root, who has ways around every wall (kernel settings, devices); set task_user, or run the "
            "worker as a user of its own",
        )
    return Shield(
        "task user",
        True,
        f"tasks run as the worker's own user, {_name()}: only the walls stand between them. Another user for them "
        "(task_user) needs an agent that may change users, which this one may not",
    )


def _name() -> str:
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return f"uid {os.geteuid()}"


_TRIALS: Final[dict[str, Callable[[int, Path], object]]] = {
    "read the memory of its parent": lambda parent, _file: Path(f"/proc/{parent}/mem").open("rb").close(),
    "read the environment of its parent": lambda parent, _file: Path(f"/proc/{parent}/environ").read_bytes(),
    "read the worker's files": lambda _parent, file: file.read_bytes(),
    "signal its parent": lambda parent, _file: os.kill(parent, 0),
}


def _tried(version: int) -> Shield:
    with tempfile.TemporaryDirectory(prefix="airbridge-doctor-") as folder:
        file = Path(folder, "state", "file")
        file.parent.mkdir()
        file.write_text("closed")
        open_to = _tries(version, file)
    if version < landlock.SCOPES_SINCE and open_to == ["signal its parent"]:
        return Shield(
            "task walls",
            True,
            f"Landlock {version}: files and memory are closed, signals to other processes of the user are not "
            "(that takes Linux 6.12)",
        )
    if open_to:
        return Shield("task walls", False, f"Landlock {version}: a task can {', '.join(open_to)}")
    return Shield(
        "task walls",
        True,
        f"Landlock {version}: other tasks' and the worker's files, memory and processes are closed",
    )


def _tries(version: int, file: Path) -> list[str]:
    """Have a walled-in child try everything; return what it could do."""
    parent, reader, writer = os.getpid(), *os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _as_a_task(version, file)
            for name, trial in _TRIALS.items():
                with suppress(OSError):
                    trial(parent, file)
                    os.write(writer, f"{name}\n".encode())
            os.write(writer, b"done\n")
        os.kill(os.getpid(), signal.SIGKILL)  # no exit handlers of the parent's
    os.close(writer)
    with open(reader) as answers:  # noqa: PTH123 - a descriptor
        said = answers.read().splitlines()
    os.waitpid(child, 0)
    return said[:-1] if said[-1:] == ["done"] else ["not be walled in"]


def _as_a_task(version: int, file: Path) -> None:
    folder = file.parent.parent
    around = walls.build((file.parent,), folder / "airflow", folder / "t", version=version)
    source = Source("doctor", "", str(folder / "none"), "none.py")
    around.around_template(source)
    around.around_task(source, folder)
