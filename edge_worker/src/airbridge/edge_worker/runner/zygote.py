"""The zygote: a process with Airflow loaded and nothing else in it, from which everything else is forked.

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
from airbridge.edge_worker.runner.messages import Parsed, Ready, Reaped, Source, Spawn, Unshared
from airbridge.edge_worker.runner.walls import Walls, decode
from airbridge.executor import protection

_FAREWELL_SECONDS: Final = 30.0
"""How long supervisors have to stop their tasks once the agent is gone."""

_PARSE_SECONDS: Final = 300.0
"""How long a template may take to parse; Airflow's own ``dagbag_import_timeout`` strikes long before."""

_TICK_SECONDS: Final = 5.0


@dataclass
class Template:
    """A template's process as the zygote sees it. `waiting` holds the descriptors of spawns until it has parsed."""

    source: Source
    pid: int
    control: socket.socket
    born: float
    ready: bool = False
    pss_bytes: int = 0
    waiting: list[list[int]] = field(default_factory=list)

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
    """Forks templates and supervisors on the agent's word."""

    def __init__(self, agent: socket.socket, limits: Limits, walls: Walls) -> None:
        self._agent = agent
        self._limits = limits
        self.walls = walls
        self._child_signals = ChildSignals()
        self._templates: OrderedDict[Source, Template] = OrderedDict()
        self._unshared: dict[Source, float] = {}
        self._supervisors: set[int] = set()

    def serve(self) -> None:
        """Serve until the agent hangs up."""
        while True:
            parsing = any(not template.ready for template in self._templates.values())
            sources: list[Waitable] = [self._agent, self._child_signals, *self._templates.values()]
            readable = wait_readable(sources, _TICK_SECONDS if parsing else None)
            if self._child_signals in readable:
                self._child_signals.drain()
                self._reap()
            for template in [source for source in readable if isinstance(source, Template)]:
                self._hear_template(template)
            if self._agent in readable and not self._hear_agent():
                return
            self._end_endless_parses()

    def farewell(self) -> None:
        """End the templates, give supervisors time to stop their tasks, then kill what is left."""
        for template in list(self._templates.values()):
            self._drop(template)
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while process.has_children() and time.monotonic() < deadline:
            wait_readable([self._child_signals], timeout=0.5)
            self._child_signals.drain()
            self._kill_leftovers()
            process.reap()
        for pid in process.children():
            _kill(pid)

    # --- the agent ---

    def _hear_agent(self) -> bool:
        try:
            message, fds = messages.receive(self._agent)
        except OSError:
            return False
        if isinstance(message, Spawn):
            self._spawn(message, fds)
        return message is not None

    def _spawn(self, spawn: Spawn, fds: list[int]) -> None:
        if not spawn.warm or self._unshared.get(spawn.source, 0.0) > time.monotonic():
            self._fork_cold(fds)
            return
        template = self._template_for(spawn.source, fds)
        template.waiting.append(fds)
        if template.ready:
            self._hand_over(template)

    def _fork_cold(self, fds: list[int], others: Sequence[list[int]] = ()) -> None:
        """Fork a supervisor whose task parses the file itself. `others` are descriptors that are not for it."""
        from airbridge.edge_worker.runner import supervise

        def let_go() -> None:
            self._let_go()
            for other in others:
                _close(other)

        self._supervisors.add(supervise.fork(fds, None, self.walls, let_go))

    def _tell_agent(self, message: messages.Message) -> None:
        with suppress(OSError):  # the loop will see that it is gone
            messages.send(self._agent, message)

    # --- templates ---

    def _template_for(self, source: Source, fds: list[int]) -> Template:
        """Return the file's template, a new one if need be; `fds`, on their way to it, are not for a new one to keep."""
        template = self._templates.get(source)
        if (
            template is not None
            and time.monotonic() - template.born > self._limits.parse_ttl_seconds
            and template.ready
        ):
            self._drop(template)
            template = None
        if template is None:
            template = self._fork_template(source, fds)
        self._templates.move_to_end(source)
        self._evict()
        return template

    def _fork_template(self, source: Source, fds: list[int]) -> Template:
        ours, theirs = messages.socket_pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _close(fds)
            _be_template(self, source, theirs)
        theirs.close()
        template = Template(source, pid, ours, born=time.monotonic())
        self._templates[source] = template
        return template

    def _hear_template(self, template: Template) -> None:
        try:
            message, _fds = messages.receive(template.control)
        except OSError:
            message = None
        match message:
            case Parsed(hazards=()):
                template.ready, template.pss_bytes = True, message.pss_bytes
                self._hand_over(template)
                self._evict()
            case Parsed():
                self._unshare(template, message.hazards)
            case Reaped():
                self._tell_agent(message)
                self._kill_leftovers()
            case _ if template.ready:
                self._drop(template)
            case _:
                self._unshare(template, ("ends the process that parses it",))

    def _hand_over(self, template: Template) -> None:
        """Send the waiting spawns to the template. If it has died, the agent sees their sockets end and asks again."""
        waiting, template.waiting = template.waiting, []
        for fds in waiting:
            try:
                messages.send(template.control, Spawn(template.source, warm=True), tuple(fds))
            except OSError:
                self._drop(template)
            finally:
                _close(fds)

    def _unshare(self, template: Template, hazards: tuple[str, ...]) -> None:
        self._unshared[template.source] = time.monotonic() + self._limits.parse_ttl_seconds
        self._tell_agent(Unshared(template.source, hazards))
        waiting, template.waiting = template.waiting, []
        self._drop(template)
        while waiting:
            self._fork_cold(waiting.pop(0), waiting)

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
        """Hang up: the template ends, its supervisors go on under the zygote."""
        if self._templates.get(template.source) is template:
            del self._templates[template.source]
        for fds in template.waiting:
            _close(fds)
        template.control.close()

    def _end_endless_parses(self) -> None:
        for template in self._templates.values():
            if not template.ready and time.monotonic() - template.born > _PARSE_SECONDS:
                _kill(template.pid)

    # --- children ---

    def _reap(self) -> None:
        for pid, status in process.reap():
            self._supervisors.discard(pid)
            if status != 0:
                self._tell_agent(Reaped(pid, status))
        self._kill_leftovers()

    def _kill_leftovers(self) -> None:
        """Kill adopted processes that are no supervisors: what a task or a parse left behind when its parent died."""
        known = self._supervisors | {template.pid for template in self._templates.values()}
        for pid in process.children():
            if pid not in known and process.name_of(pid) not in (process.SUPERVISOR, process.TEMPLATE):
                _kill(pid)

    def _let_go(self) -> None:
        """In a forked child: close everything that is the zygote's."""
        self._agent.close()
        self._child_signals.close()
        for template in self._templates.values():
            template.control.close()
            for fds in template.waiting:
                _close(fds)


def _be_template(zygote: Zygote, source: Source, control: socket.socket) -> NoReturn:
    from airbridge.edge_worker.runner import template

    code = 1
    try:
        zygote._let_go()  # noqa: SLF001 - this process is the zygote's own copy
        template.run(source, control, zygote.walls)
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
