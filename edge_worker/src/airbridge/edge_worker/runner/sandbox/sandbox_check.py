"""Checks of the protections between tasks and the worker on this host, by trying to get around them."""

from __future__ import annotations

import getpass
import grp
import os
import pwd
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from airbridge.core.sandbox import hardening, landlock, mounts
from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.runner.messages import Source
from airbridge.edge_worker.runner.sandbox import sandbox, trusted_paths, view
from airbridge.edge_worker.runner.sandbox.task_user import TaskUser
from airbridge.edge_worker.settings import TaskSandbox, WorkerSettings, environment

_NO_LANDLOCK: Final = (
    "this kernel offers no Landlock (Linux 5.13 or later with landlock in its lsm list, and a seccomp profile that lets "
    "its system calls through)"
)


_MOST_NAMED: Final = 5


@dataclass(frozen=True)
class SandboxCheck:
    """Result of the check of one protection."""

    name: str
    active: bool
    detail: str


def check_memory() -> SandboxCheck:
    """Check the protection of the agent's memory. Hardens this process as the agent does."""
    active = hardening.harden()
    detail = (
        "the memory, environment and descriptors of agent, runner and tasks are closed to other processes of their user"
        if active
        else "PR_SET_DUMPABLE was refused; the kernel must allow it"
    )
    return SandboxCheck("memory protection", active, detail)


def check_tasks(settings: WorkerSettings) -> Iterator[SandboxCheck]:
    """Check the protections between tasks, and between tasks and the worker."""
    version = landlock.abi()
    if settings.task_sandbox is TaskSandbox.OFF:
        yield SandboxCheck(
            "task sandbox", False, "task_sandbox is 'off': tasks can read each other's files and the journal"
        )
    elif not version:
        yield SandboxCheck("task sandbox", False, f"{_NO_LANDLOCK}: {_consequence(settings)}")
    else:
        yield _probe(version)
    yield _user(settings)
    if version and settings.task_sandbox is not TaskSandbox.OFF:
        yield _file_system(settings)
    yield _trusted_files(settings)


def _file_system(settings: WorkerSettings) -> SandboxCheck:
    """Check which file system tasks see. Without mounts of their own it fails only where they could make no temporary files."""
    uid = None
    with suppress(SettingsError):
        uid = TaskUser.named(settings.task_user).uid if settings.task_user else None
    name = "tasks' file system"
    if mounts.available(uid):
        return SandboxCheck(
            name, True, "mounts of their own: as on this host, with the worker's files covered"
        )
    state_dir = Path(sandbox.real(settings.state_dir))
    without = (
        "no mounts of their own (unshare, mount_setattr or move_mount is denied, by the container's seccomp profile or "
        f"user.max_user_namespaces): tasks cannot list the directories above {state_dir}, nor make files directly in them"
    )
    shared = sorted(map(str, view.shared_above(state_dir)))
    if shared:
        return SandboxCheck(name, False, f"{without}, {' and '.join(shared)} among them; move state_dir")
    return SandboxCheck(name, True, without)


def _trusted_files(settings: WorkerSettings) -> SandboxCheck:
    """Check that tasks cannot change what the worker executes outside of `state_dir`: no sandbox closes it to them."""
    name = "worker's code"
    uid = os.geteuid()
    with suppress(SettingsError):
        uid = TaskUser.named(settings.task_user).uid if settings.task_user else uid
    if uid == 0:
        return SandboxCheck(name, True, "not checked: tasks run as root")
    found = trusted_paths.changeable(
        trusted_paths.trusted(environment()), uid, (settings.state_dir, *settings.hidden_paths)
    )
    if not found:
        return SandboxCheck(name, True, "tasks cannot change what the worker imports, nor its files of AWS")
    return SandboxCheck(
        name,
        False,
        f"tasks can change {', '.join(map(str, found))}, from which the worker imports code or takes its credentials: install it "
        "as another user, name AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE in a directory of that user, or set task_user",
    )


def _consequence(settings: WorkerSettings) -> str:
    if settings.task_user:
        return "tasks can read and signal each other; the worker's own files are closed by their owner"
    return "tasks can read each other's files, the journal and the join token, and signal the worker"


def _user(settings: WorkerSettings) -> SandboxCheck:
    if settings.task_user is not None:
        try:
            user = TaskUser.named(settings.task_user)
        except SettingsError as error:
            return SandboxCheck("task user", False, str(error))
        detail = f"tasks run as {user.name} (uid {user.uid}), the agent as another"
        return SandboxCheck("task user", True, f"{detail}{_shared_group(user)}")
    if os.geteuid() == 0:
        return SandboxCheck(
            "task user",
            False,
            "tasks run as root, which can get around the sandbox (kernel settings, devices); set task_user, or run the "
            "worker as a user of its own",
        )
    return SandboxCheck(
        "task user",
        True,
        f"tasks run as the worker's own user, {_name()}: only the sandbox separates them. Another user for them "
        "(task_user) needs an agent that is root",
    )


def _shared_group(user: TaskUser) -> str:
    """Return which users besides can read what the agent writes for tasks: those of the tasks' group."""
    members = {each.pw_name for each in pwd.getpwall() if each.pw_gid == user.gid}
    with suppress(KeyError):
        members |= {*grp.getgrgid(user.gid).gr_mem}
    others = sorted(members - {user.name})
    if not others:
        return ""
    named = ", ".join(others[:_MOST_NAMED]) + (", ..." if len(others) > _MOST_NAMED else "")
    return f"; {named}, in its group, can read the tasks' configuration and AWS credentials: give it a group of its own"


def _name() -> str:
    with suppress(KeyError, OSError):
        return getpass.getuser()
    return f"uid {os.geteuid()}"


_PROBES: Final[dict[str, Callable[[int, Path], object]]] = {
    "read the memory of its parent": lambda parent, _file: Path(f"/proc/{parent}/mem").open("rb").close(),
    "read the environment of its parent": lambda parent, _file: Path(f"/proc/{parent}/environ").read_bytes(),
    "read the worker's files": lambda _parent, file: file.read_bytes(),
    "signal its parent": lambda parent, _file: os.kill(parent, 0),
}


def _probe(version: int) -> SandboxCheck:
    with tempfile.TemporaryDirectory(prefix="airbridge-doctor-") as folder:
        file = Path(folder, "state", "file")
        file.parent.mkdir()
        file.write_text("closed")
        open_to = _probe_in_child(version, file)
    if version < landlock.SCOPES_SINCE and open_to == ["signal its parent"]:
        return SandboxCheck(
            "task sandbox",
            True,
            f"Landlock {version}: files and memory are closed, signals to other processes of the user are not "
            "(that takes Linux 6.12)",
        )
    if open_to:
        return SandboxCheck("task sandbox", False, f"Landlock {version}: a task can {', '.join(open_to)}")
    return SandboxCheck(
        "task sandbox",
        True,
        f"Landlock {version}: other tasks' and the worker's files, memory and processes are closed",
    )


def _probe_in_child(version: int, file: Path) -> list[str]:
    """Run all probes in a sandboxed child; return those that succeeded."""
    parent, reader, writer = os.getpid(), *os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _enter_task_sandbox(version, file)
            for name, probe in _PROBES.items():
                with suppress(OSError):
                    probe(parent, file)
                    os.write(writer, f"{name}\n".encode())
            os.write(writer, b"done\n")
        os.kill(os.getpid(), signal.SIGKILL)  # no exit handlers of the parent's
    os.close(writer)
    with open(reader) as answers:  # noqa: PTH123 - a descriptor
        lines = answers.read().splitlines()
    os.waitpid(child, 0)
    return lines[:-1] if lines[-1:] == ["done"] else ["escape: the sandbox could not be entered"]


def _enter_task_sandbox(version: int, file: Path) -> None:
    folder = file.parent.parent
    tasks = sandbox.build((file.parent,), folder / "airflow", folder / "t", version=version)
    source = Source("doctor", "", str(folder / "none"), "none.py")
    tasks.restrict_template(source)
    tasks.restrict_task(source, folder)
