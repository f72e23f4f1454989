"""The zygote: a process with Airflow loaded and nothing else in it, from which templates and supervisors are forked.

Started by the agent with ``python -m airbridge.edge_worker.runner.zygote FD WORKER``, never forked from it: the
agent's memory holds keys. It has one thread, and hands each task's descriptors on without looking into them.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import structlog

from airbridge.edge_worker.runner import messages, pages, process
from airbridge.edge_worker.runner.loop import ChildSignals, Waitable, wait_readable
from airbridge.edge_worker.runner.messages import (
    Expect,
    Free,
    Parsed,
    Ready,
    Reaped,
    Running,
    Source,
    Spawn,
    Take,
    Unshared,
)
from airbridge.edge_worker.runner.walls import Walls, decode
from airbridge.executor import protection

_IDLE_SECONDS: Final = 60.0
"""How long a supervisor waits for another task before it ends."""

_TASKS_EACH: Final = 500
"""After how many tasks a supervisor makes way for a new one, whatever it may have gathered."""

_FAREWELL_SECONDS: Final = 30.0
"""How long supervisors have to stop their tasks once the agent is gone."""

_LAST_SECONDS: Final = 5.0
"""How long they, and what is beneath them, have to end once they have been killed."""

_SPAWNED_WITH: Final = 4
"""How many descriptors come with a `Spawn`."""

_PARSE_SECONDS: Final = 300.0
"""How long a template may take to parse; Airflow's own ``dagbag_import_timeout`` strikes long before."""

_TICK_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Kind:
    """What a template is one of: a DAG file, parsed or to be parsed by each task."""

    source: Source
    parsed: bool


@dataclass
class Template:
    """A template's process as the zygote sees it. `waiting` holds the descriptors of spawns until it has parsed."""

    kind: Kind
    pid: int
    control: socket.socket
    born: float
    ready: bool = False
    pss_bytes: int = 0
    waiting: list[list[int]] = field(default_factory=list)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.control.fileno()


@dataclass
class Supervisor:
    """A supervisor's process as the zygote sees it. `task` is the process that it supervises, or 0."""

    pid: int
    control: socket.socket
    task: int = 0
    tasks: int = 0
    free_since: float = 0.0

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.control.fileno()


@dataclass(frozen=True)
class Limits:
    """What bounds the templates."""

    max_templates: int
    template_memory_bytes: int
    parse_ttl_seconds: float


class Zygote:
    """Forks templates and supervisors on the agent's word, and brings the two together for each task."""

    def __init__(self, agent: socket.socket, limits: Limits, walls: Walls) -> None:
        self._agent = agent
        self._limits = limits
        self.walls = walls
        self._child_signals = ChildSignals()
        self._passing: list[list[int]] = []
        """The descriptors of spawns that no supervisor has yet: not for anything that is forked to keep."""
        self._templates: OrderedDict[Kind, Template] = OrderedDict()
        self._template_pids: set[int] = set()
        self._unshared: dict[Source, float] = {}
        self._supervisors: dict[int, Supervisor] = {}
        self._free: list[Supervisor] = []
        self._ending: dict[int, Supervisor] = {}
        """Those that have been hung up on, until they have ended."""

    def serve(self) -> None:
        """Serve until the agent hangs up."""
        while True:
            parsing = any(not template.ready for template in self._templates.values())
            sources: list[Waitable] = [
                self._agent,
                self._child_signals,
                *self._templates.values(),
                *self._supervisors.values(),
            ]
            readable = wait_readable(sources, _TICK_SECONDS if parsing or self._free else None)
            for supervisor in [source for source in readable if isinstance(source, Supervisor)]:
                self._hear_supervisor(supervisor)
            if self._child_signals in readable:
                self._child_signals.drain()
                self._reap()
            for template in [source for source in readable if isinstance(source, Template)]:
                self._hear_template(template)
            if self._agent in readable and not self._hear_agent():
                return
            self._end_endless_parses()
            self._end_idle()

    def farewell(self) -> None:
        """End the templates, give supervisors time to stop their tasks, then kill what is left."""
        for template in list(self._templates.values()):
            self._drop(template)
        for supervisor in list(self._supervisors.values()):
            self._forget(supervisor)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while process.has_children() and time.monotonic() < deadline:
            wait_readable([self._child_signals], timeout=0.5)
            self._child_signals.drain()
            self._reap()
        deadline = time.monotonic() + _LAST_SECONDS
        while process.has_children() and time.monotonic() < deadline:
            for pid in process.children():  # one generation after the other falls to this process
                _kill(pid)
            wait_readable([self._child_signals], timeout=0.1)
            self._child_signals.drain()
            process.reap()

    # --- the agent ---

    def _hear_agent(self) -> bool:
        message, fds = messages.hear(self._agent, _SPAWNED_WITH)
        if isinstance(message, Spawn):
            self._spawn(message, fds)
        return message is not None

    def _spawn(self, spawn: Spawn, fds: list[int]) -> None:
        """Send the descriptors on their way. If there is no process to be had, the agent sees them end, and asks again."""
        if fds not in self._passing:
            self._passing.append(fds)
        shared = spawn.warm and self._unshared.get(spawn.source, 0.0) <= time.monotonic()
        try:
            self._send_to_template(Kind(spawn.source, parsed=shared), fds)
        except OSError as error:
            structlog.get_logger().warning("runner.no_template", error=str(error))
            self._let_pass(fds)

    def _tell_agent(self, message: messages.Message) -> None:
        with suppress(OSError):  # the loop will see that it is gone
            messages.send(self._agent, message)

    # --- supervisors ---

    def _hand_over(self, template: Template) -> None:
        """Give the waiting spawns to supervisors. What meets a dead process here is sent on its way again."""
        waiting, template.waiting = template.waiting, []
        for fds in waiting:
            try:
                together = self._bring_together(template, fds)
            except OSError as error:
                structlog.get_logger().warning("runner.no_supervisor", error=str(error))
                self._let_pass(fds)  # the agent sees the sockets end, and asks again
                continue
            if together:
                self._let_pass(fds)
            else:
                self._spawn(Spawn(template.kind.source, warm=template.kind.parsed), fds)

    def _bring_together(self, template: Template, fds: list[int]) -> bool:
        """Give both ends of a leash away; False if one of the two has died. Raises `OSError` if no supervisor can be forked."""
        ours, theirs = messages.socket_pair()
        with ours, theirs:
            supervisor = self._free.pop() if self._free else self._fork_supervisor((ours, theirs))
            supervisor.tasks += 1
            try:
                messages.send(template.control, Expect(), (ours.fileno(),), wait=False)
            except OSError:
                self._drop(template)
                self._set_free(supervisor)
                return False
            try:
                take = Take(template.pid, warm=template.kind.parsed)
                messages.send(supervisor.control, take, (*fds, theirs.fileno()))
            except OSError:
                self._forget(supervisor)
                return False
        return True

    def _let_pass(self, fds: list[int]) -> None:
        """Close a spawn's descriptors here: whoever is to have them has them, or nobody will."""
        self._passing.remove(fds)
        _close(fds)

    def _fork_supervisor(self, leash: Sequence[socket.socket]) -> Supervisor:
        """Fork one, which is not to keep both ends of the `leash`."""
        from airbridge.edge_worker.runner import supervise

        def let_go() -> None:
            self._let_go()
            for end in leash:
                end.close()

        pid, control = supervise.fork(self.walls, let_go)
        supervisor = self._supervisors[pid] = Supervisor(pid, control)
        return supervisor

    def _hear_supervisor(self, supervisor: Supervisor) -> None:
        message, _fds = messages.hear(supervisor.control)
        match message:
            case Running():
                supervisor.task = message.pid
            case Free() if supervisor.tasks < _TASKS_EACH:
                self._set_free(supervisor)
            case _:
                self._forget(supervisor)

    def _set_free(self, supervisor: Supervisor) -> None:
        supervisor.task, supervisor.free_since = 0, time.monotonic()
        self._free.append(supervisor)

    def _forget(self, supervisor: Supervisor) -> None:
        """Hang up: the supervisor ends, once it is done with its task."""
        supervisor.control.close()
        self._supervisors.pop(supervisor.pid, None)
        self._ending[supervisor.pid] = supervisor
        if supervisor in self._free:
            self._free.remove(supervisor)

    def _end_idle(self) -> None:
        long_ago = time.monotonic() - _IDLE_SECONDS
        for supervisor in [each for each in self._free if each.free_since < long_ago]:
            self._forget(supervisor)

    # --- templates ---

    def _send_to_template(self, kind: Kind, fds: list[int]) -> None:
        template = self._template_for(kind)
        template.waiting.append(fds)
        if template.ready:
            self._hand_over(template)

    def _template_for(self, kind: Kind) -> Template:
        """Return the file's template, a new one if need be."""
        template = self._templates.get(kind)
        if (
            template is not None
            and time.monotonic() - template.born > self._limits.parse_ttl_seconds
            and template.ready
        ):
            self._drop(template)
            template = None
        if template is None:
            template = self._fork_template(kind)
        self._templates.move_to_end(kind)
        self._evict()
        return template

    def _fork_template(self, kind: Kind) -> Template:
        ours, theirs = messages.socket_pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _be_template(self, kind, theirs)
        theirs.close()
        template = Template(kind, pid, ours, born=time.monotonic())
        self._templates[kind] = template
        self._template_pids.add(pid)
        return template

    def _hear_template(self, template: Template) -> None:
        message, _fds = messages.hear(template.control)
        match message:
            case Parsed(hazards=()) if not template.ready:
                template.ready = True
                template.pss_bytes = max(0, min(message.pss_bytes, self._limits.template_memory_bytes))
                self._hand_over(template)
                self._evict()
            case Parsed() if template.kind.parsed and not template.ready:
                self._unshare(template, message.hazards)
            case _ if template.ready or not template.kind.parsed:
                self._drop(template)
            case _:
                self._unshare(template, ("ends the process that parses it",))

    def _unshare(self, template: Template, hazards: tuple[str, ...]) -> None:
        """Have each of the file's tasks parse it, from now on and until it may have become another."""
        source = template.kind.source
        self._unshared[source] = time.monotonic() + self._limits.parse_ttl_seconds
        self._tell_agent(Unshared(source, hazards))
        waiting, template.waiting = template.waiting, []
        self._drop(template)
        for fds in waiting:
            self._spawn(Spawn(source, warm=False), fds)

    def _evict(self) -> None:
        """Drop templates, least recently used first, until both bounds hold; the one in use last stays."""
        while len(self._templates) > 1 and self._over_bounds():
            idle = next((each for each in self._templates.values() if each.ready), None)
            if idle is None or idle is next(reversed(self._templates.values())):
                return
            self._drop(idle)

    def _over_bounds(self) -> bool:
        memory = sum(template.pss_bytes for template in self._templates.values())
        return (
            len(self._templates) > self._limits.max_templates or memory > self._limits.template_memory_bytes
        )

    def _drop(self, template: Template) -> None:
        """Hang up: the template ends once its last task has."""
        if self._templates.get(template.kind) is template:
            del self._templates[template.kind]
        for fds in template.waiting:
            self._let_pass(fds)
        template.waiting = []
        template.control.close()

    def _end_endless_parses(self) -> None:
        for template in self._templates.values():
            if not template.ready and time.monotonic() - template.born > _PARSE_SECONDS:
                _kill(template.pid)

    # --- children ---

    def _reap(self) -> None:
        """Take note of the children that have ended, and kill what has been left to this process."""
        ended = process.reap()
        # They may have said just now what their task is.
        for each in wait_readable(self._supervisors.values(), 0):
            self._hear_supervisor(each)
        for pid, status in ended:
            self._template_pids.discard(pid)
            supervisor = self._supervisors.get(pid)
            if supervisor is not None:
                self._forget(supervisor)
            if self._ending.pop(pid, None) is not None and status != 0:
                self._tell_agent(Reaped(pid, status))
        self._kill_leftovers()
        for pid, status in ended:
            self._tell_supervisor_of(pid, status)

    def _tell_supervisor_of(self, task: int, status: int) -> None:
        """Tell a task's supervisor how it ended, if the task had fallen to this process."""
        for supervisor in self._supervisors.values():
            if supervisor.task == task:
                with suppress(OSError):
                    messages.send(supervisor.control, Reaped(task, status))

    def _kill_leftovers(self) -> None:
        """Kill adopted processes that nobody supervises: what a task or a parse left behind when its parent died."""
        supervisors = [*self._supervisors.values(), *self._ending.values()]
        known = {0, *self._template_pids}
        known.update(pid for each in supervisors for pid in (each.pid, each.task))
        for pid in process.children():
            if pid not in known:
                _kill(pid)

    def _let_go(self) -> None:
        """In a forked child: close everything that is the zygote's."""
        self._agent.close()
        self._child_signals.close()
        for fds in self._passing:
            _close(fds)
        for template in self._templates.values():
            template.control.close()
        for supervisor in self._supervisors.values():
            supervisor.control.close()


def _be_template(zygote: Zygote, kind: Kind, control: socket.socket) -> NoReturn:
    from airbridge.edge_worker.runner import template

    code = 1
    try:
        zygote._let_go()  # noqa: SLF001 - this process is the zygote's own copy
        template.run(kind.source, control, zygote.walls, parse=kind.parsed)
        code = 0
    finally:
        os._exit(code)


def _close(fds: list[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def main(control_fd: int, worker_name: str, limits: Limits, walls: Walls, preload: Sequence[str]) -> None:
    """Load Airflow, tell the agent, and serve."""
    protection.harden()
    process.name_self("airbridge-zyg", f"airbridge zygote {worker_name}")
    process.ignore_stop_signals()
    process.adopt_orphans()
    agent = socket.socket(fileno=control_fd)
    agent.set_inheritable(False)
    from airbridge.edge_worker import _airflow
    from airbridge.edge_worker.runner import rehearsal, supervise, template  # noqa: F401 - loaded before the first fork

    _airflow.preload(worker_name, preload)
    with tempfile.TemporaryDirectory(prefix="airbridge-rehearsal-", ignore_cleanup_errors=True) as folder:
        rehearsal.rehearse(Path(folder))
    if process.thread_count() > 1:
        structlog.get_logger().warning(
            "runner.zygote_has_threads", detail="a plugin starts threads at import; tasks will not have them"
        )
    gc.collect()
    gc.disable()
    gc.freeze()
    pages.gather()
    zygote = Zygote(agent, limits, walls)
    messages.send(agent, Ready(process.pss_bytes()))
    zygote.serve()
    agent.close()
    zygote.farewell()


if __name__ == "__main__":
    # Run under its real name: `__main__` would be a second copy of this module.
    from airbridge.edge_worker.runner import zygote as this

    this.main(
        int(sys.argv[1]),
        sys.argv[2],
        this.Limits(int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])),
        decode(sys.argv[6]),
        sys.argv[7:],
    )
