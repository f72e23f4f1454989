"""Messages between the runner's processes, with descriptors.

They are sent over UNIX socket pairs of type SOCK_SEQPACKET: one message a packet, descriptors alongside. The agent has a socket to
the zygote, the zygote one to each template and each supervisor. Each task has two more: one on which its supervisor reports to
the agent, and one, its task handle, between its supervisor and its template. What a task needs (`Job`) may be larger than a packet and
travels in a memfd that only the task and its supervisor read.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
from datetime import datetime
from typing import Any, Final

import msgspec

from airbridge.edge_worker.exceptions import UNDECODABLE

_MAX_PACKET: Final = 64 * 1024
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Source(msgspec.Struct, frozen=True):
    """A DAG file of a snapshot: what a template is the parsed form of."""

    bundle_name: str
    bundle_version: str
    bundle_path: str
    dag_rel_path: str
    #: The unpacked environment; empty if the snapshot names none.
    environment: str = ""
    #: Inode numbers of these directories. What was evicted and fetched again is another source: a template's view of the file
    #: system, and its Landlock domain, have the directory that is gone.
    inodes: tuple[int, ...] = ()

    def on_disk(self) -> Source:
        """Return the same source with the inode numbers of its directories. Raises `OSError` if one is missing."""
        inodes = tuple(os.stat(path).st_ino for path in self.code_paths)  # noqa: PTH116 - these are texts
        return msgspec.structs.replace(self, inodes=inodes)

    @property
    def code_paths(self) -> tuple[str, ...]:
        """The directories that the file imports from."""
        return (self.bundle_path, self.environment) if self.environment else (self.bundle_path,)


class ProcessLimits(msgspec.Struct, frozen=True):
    """Limits that a task's process sets for itself and for each that it starts, in bytes; 0 limits nothing."""

    #: Memory that it may have beyond what it begins with.
    memory: int = 0
    #: The largest file.
    file: int = 0


class Job(msgspec.Struct, frozen=True):
    """Description of a task for its supervisor and its process. `ti` and `ti_context` are JSON objects of the Task SDK's models."""

    item_id: str
    epoch: int
    ti: dict[str, Any]
    ti_context: dict[str, Any]
    start_date: datetime
    source: Source
    #: The task's own working directory, and the only place among the worker's files that it may write to.
    working_dir: str
    kill_grace_seconds: float
    limits: ProcessLimits = ProcessLimits()
    #: Memory that its supervisor may have beyond what it begins with, in bytes; 0 limits nothing.
    supervisor_memory: int = 0
    #: Run triggers, which come over the proxy socket, in place of the task.
    triggers: bool = False


class Spawn(msgspec.Struct, frozen=True, tag=True):
    """Agent to zygote: run a task. Descriptors: its proxy socket, its status socket, the memfd with the `Job`, the task's log."""

    source: Source
    warm: bool


class Take(msgspec.Struct, frozen=True, tag=True):
    """Zygote to supervisor: supervise a task. Descriptors: those of the `Spawn`, and the task handle."""

    template: int
    warm: bool


class Expect(msgspec.Struct, frozen=True, tag=True):
    """Zygote to template: a supervisor will request a task. Descriptor: the task handle."""


class Fork(msgspec.Struct, frozen=True, tag=True):
    """Supervisor to template: fork the task. Descriptors: the task's ends of requests, stdout, stderr and logs, and the memfd.

    A trigger host also gets the proxy socket, before the memfd.
    """


class Forked(msgspec.Struct, frozen=True, tag=True):
    """Template to supervisor: the task is there. It sends back the first bytes on its requests socket, and waits for one more."""

    pid: int


class Used(msgspec.Struct, frozen=True):
    """CPU time and memory of a process and of the children that it has waited for, as the kernel tells its parent.

    A task's parent is its template, which runs the task's own code: it is an account, not a proof.
    """

    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0


class Exited(msgspec.Struct, frozen=True, tag=True):
    """Template to supervisor: the task has ended, and all that it left running is killed."""

    status: int
    used: Used | None = None


class Running(msgspec.Struct, frozen=True, tag=True):
    """Supervisor to zygote: the process that it supervises, which becomes the zygote's child if its template dies."""

    pid: int


class Free(msgspec.Struct, frozen=True, tag=True):
    """Supervisor to zygote: it can take another task."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The zygote has loaded Airflow and takes spawns."""

    pss_bytes: int


class Admit(msgspec.Struct, frozen=True, tag=True):
    """Zygote to agent: a template is forked, and waits for `Parse` before it runs any code of a DAG file.

    Descriptors: the socket to it, and its pidfd.
    """

    pid: int


class Parse(msgspec.Struct, frozen=True, tag=True):
    """Agent to template: parse, within these limits. If the socket ends instead, the file cannot be parsed ahead of its tasks."""

    limits: ProcessLimits = ProcessLimits()


class Parsed(msgspec.Struct, frozen=True, tag=True):
    """A template has parsed its file. With `violations` it must not be shared, and the template has ended."""

    pss_bytes: int = 0
    violations: tuple[str, ...] = ()


class Reaped(msgspec.Struct, frozen=True, tag=True):
    """Zygote to agent: a supervisor died without a result. Zygote to supervisor: its task did, whose template is dead.

    `status` is as `os.waitpid` gives it.
    """

    pid: int
    status: int
    used: Used | None = None


class Unshared(msgspec.Struct, frozen=True, tag=True):
    """A DAG file turned out not to be shareable: its tasks parse it themselves."""

    source: Source
    violations: tuple[str, ...]


class Started(msgspec.Struct, frozen=True, tag=True):
    """Supervisor to agent: the task is forked, and waits for `Go`. Descriptor: the task's pidfd."""

    pid: int
    #: Whether its template has the DAG file parsed.
    warm: bool = False
    template: int = 0
    #: The task's own process.
    task: int = 0


class Go(msgspec.Struct, frozen=True, tag=True):
    """Agent to supervisor: begin. If the status socket ends instead, the task has been given up, and never begins."""


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Result of a supervisor's task. `code` is 0 if it has reported the task's final state.

    It takes no other task before the agent has closed the status socket: until then the agent may still kill it.
    """

    code: int
    detail: str = ""
    #: Class of the exception that failed the task, if one did.
    exception: str = ""
    used: Used | None = None


Message = (
    Spawn
    | Take
    | Expect
    | Fork
    | Forked
    | Exited
    | Running
    | Free
    | Ready
    | Admit
    | Parse
    | Parsed
    | Reaped
    | Unshared
    | Started
    | Go
    | Ended
)

_DECODER: Final = msgspec.msgpack.Decoder(Message)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep packets whole."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = (), *, wait: bool = True) -> None:
    """Send one message, with descriptors that the receiver gets copies of.

    Raises `BlockingIOError` if the socket is full, unless it is to `wait`.
    """
    payload = msgspec.msgpack.encode(message)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([payload], ancillary, 0 if wait else socket.MSG_DONTWAIT)


def receive(sock: socket.socket, most_fds: int = 0) -> tuple[Message | None, list[int]]:
    """Return the next message, or None at end of file, and the descriptors that came with it: no more than `most_fds`.

    Raises `OSError` also for what is no message: a template runs user code, and may send anything.
    """
    space = socket.CMSG_SPACE(most_fds * array.array("i").itemsize) if most_fds else 0
    payload, ancillary, _flags, _address = sock.recvmsg(_MAX_PACKET, space, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    if not payload:
        return None, fds
    try:
        return _DECODER.decode(payload), fds  # what was cut off cannot be decoded
    except UNDECODABLE as error:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EBADMSG, f"no message: {error}") from error


def receive_or_eof(sock: socket.socket, most_fds: int = 0) -> tuple[Message | None, list[int]]:
    """Do the same as `receive`, but treat an error of the socket, or an invalid message, as its end."""
    try:
        return receive(sock, most_fds)
    except OSError:
        return None, []


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def write_job(job: Job) -> int:
    """Return a sealed memfd that holds `job`; the caller closes it."""
    fd = os.memfd_create("airbridge-job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        # Not msgpack, which has no integers beyond 64 bits; and msgspec's own JSON has no NaN.
        file.write(json.dumps(msgspec.to_builtins(job)).encode())
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def read_job(fd: int) -> Job:
    """Return the job in the memfd, which others may be reading too."""
    return msgspec.convert(json.loads(os.pread(fd, os.fstat(fd).st_size, 0)), Job)
