"""The zygote: a process with Airflow loaded and nothing else in it, from which templates and supervisors are forked.

Started by the agent with ``python -m airbridge.edge_worker.runner.zygote FD WORKER``, never forked from it: the
agent's memory holds keys. It has one thread, and passes each task's descriptors on without reading from them.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NoReturn

import structlog

from airbridge.core.sandbox import hardening
from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.event_loop import ChildSignals, Waitable, wait_readable
from airbridge.edge_worker.runner.forking import fork_safety, huge_pages
from airbridge.edge_worker.runner.forking.supervisor_pool import Supervisor, SupervisorPool
from airbridge.edge_worker.runner.forking.template_pool import (
    Limits,
    PendingSpawn,
    Template,
    TemplateKey,
    TemplatePool,
)
from airbridge.edge_worker.runner.messages import (
    Admit,
    Expect,
    Free,
    Parsed,
    Ready,
    Reaped,
    Running,
    Spawn,
    Take,
    Unshared,
    Used,
)
from airbridge.edge_worker.runner.sandbox.sandbox import Sandbox, decode

# Seconds for which supervisors may stop their tasks once the agent is gone.
_SHUTDOWN_SECONDS: Final = 30.0

# Seconds within which killed processes, and those below them, must have ended.
_KILL_SECONDS: Final = 5.0

# Descriptors that come with a `Spawn`.
_SPAWN_FDS: Final = 4

# Seconds between two looks at stuck parses and idle supervisors, while there are any.
_TICK_SECONDS: Final = 5.0


class Zygote:
    """Forks templates and supervisors for the agent, and connects one of each for every task."""

    def __init__(self, agent: socket.socket, limits: Limits, sandbox: Sandbox) -> None:
        self._agent = agent
        self._sandbox = sandbox
        self._child_signals = ChildSignals()
        self._templates = TemplatePool(limits, self._fork_template)
        self._supervisors = SupervisorPool(self._fork_supervisor)
        self._queue: deque[PendingSpawn] = deque()
        # All spawns whose descriptors are open here, queued or waiting for a template: a forked child must close them.
        self._spawns: set[PendingSpawn] = set()

    def serve(self) -> None:
        """Serve until the agent hangs up."""
        while True:
            sources: list[Waitable] = [
                self._agent,
                self._child_signals,
                *self._templates,
                *self._supervisors,
            ]
            ticking = self._templates.parsing or self._supervisors.any_free
            readable = wait_readable(sources, _TICK_SECONDS if ticking else None)
            # Supervisors first: a message about a task must be read before that task is reaped.
            for supervisor in [source for source in readable if isinstance(source, Supervisor)]:
                self._handle_supervisor(supervisor)
            if self._child_signals in readable:
                self._child_signals.drain()
                self._reap()
            for template in [source for source in readable if isinstance(source, Template)]:
                self._handle_template(template)
            if self._agent in readable and not self._handle_agent():
                return
            self._assign_spawns()
            self._templates.kill_stuck_parses()
            self._supervisors.end_idle()

    def shut_down(self) -> None:
        """End the templates, give supervisors time to stop their tasks, then kill what is left."""
        for template in self._templates:
            self._drop(template)
        for supervisor in self._supervisors:
            self._supervisors.hang_up(supervisor)
        deadline = time.monotonic() + _SHUTDOWN_SECONDS
        while process.has_children() and time.monotonic() < deadline:
            wait_readable([self._child_signals], timeout=0.5)
            self._child_signals.drain()
            self._reap()
        deadline = time.monotonic() + _KILL_SECONDS
        while process.has_children() and time.monotonic() < deadline:
            # Again and again: each generation becomes a child of this process only once the one above it is dead.
            for pid in process.children():
                process.kill(pid)
            wait_readable([self._child_signals], timeout=0.1)
            self._child_signals.drain()
            process.reap()

    # --- messages ----------------------------------------------------------------------------------

    def _handle_agent(self) -> bool:
        """Queue a spawn; False once the agent has hung up."""
        message, fds = messages.receive_or_eof(self._agent, _SPAWN_FDS)
        if isinstance(message, Spawn):
            spawn = PendingSpawn(message.source, message.warm, fds)
            self._spawns.add(spawn)
            self._queue.append(spawn)
        return message is not None

    def _handle_supervisor(self, supervisor: Supervisor) -> None:
        message, _fds = messages.receive_or_eof(supervisor.control)
        match message:
            case Running():
                supervisor.task = message.pid
            case Free():
                self._supervisors.task_done(supervisor)
            case _:
                self._supervisors.hang_up(supervisor)

    def _handle_template(self, template: Template) -> None:
        message, _fds = messages.receive_or_eof(template.control)
        match message:
            case Parsed(violations=()) if not template.ready:
                self._templates.set_ready(template, message.pss_bytes)
                # Directly, not by the queue: with a short TTL the template would be too old for them already.
                for spawn in template.take_waiting():
                    self._assign(template, spawn)
                self._templates.evict()
            case Parsed() if template.key.parsed and not template.ready:
                self._unshare(template, message.violations)
            case _ if template.ready or not template.key.parsed:
                self._drop(template)
            case _:
                self._unshare(template, ("ends the process that parses it",))

    def _notify_agent(self, message: messages.Message) -> None:
        with suppress(OSError):  # the loop will see that the agent is gone
            messages.send(self._agent, message)

    # --- spawns ------------------------------------------------------------------------------------

    def _assign_spawns(self) -> None:
        """Assign every queued spawn to a template, which may have to parse first."""
        while self._queue:
            spawn = self._queue.popleft()
            try:
                template = self._templates.template_for(spawn)
            except OSError as error:
                self._give_up(spawn, error)
                continue
            if template.ready:
                self._assign(template, spawn)
            else:
                template.waiting.append(spawn)

    def _assign(self, template: Template, spawn: PendingSpawn) -> None:
        try:
            connected = self._connect(template, spawn)
        except OSError as error:
            self._give_up(spawn, error)
            return
        if connected:
            self._close(spawn)
        else:
            # Template or supervisor was dead. It is dropped now, so the queue ends with live ones.
            self._queue.append(spawn)

    def _give_up(self, spawn: PendingSpawn, error: OSError) -> None:
        # No process can be forked. The agent sees the task's sockets end, and sends the spawn again.
        structlog.get_logger().warning("runner.not_forked", error=str(error))
        self._close(spawn)

    def _connect(self, template: Template, spawn: PendingSpawn) -> bool:
        """Send both ends of a task handle; False if one of the two has died. Raises `OSError` if none can be forked."""
        ours, theirs = messages.socket_pair()
        with ours, theirs:
            supervisor = self._supervisors.take((ours, theirs))
            try:
                # Without waiting: a template that does not read must not hold up the tasks of other files.
                messages.send(template.control, Expect(), (ours.fileno(),), wait=False)
            except OSError:
                self._drop(template)
                self._supervisors.set_free(supervisor)
                return False
            try:
                take = Take(template.pid, warm=template.key.parsed)
                messages.send(supervisor.control, take, (*spawn.fds, theirs.fileno()))
            except OSError:
                self._supervisors.hang_up(supervisor)
                return False
        return True

    def _close(self, spawn: PendingSpawn) -> None:
        self._spawns.discard(spawn)
        spawn.close()

    def _drop(self, template: Template) -> None:
        for spawn in self._templates.drop(template):
            self._close(spawn)

    def _unshare(self, template: Template, violations: tuple[str, ...]) -> None:
        self._notify_agent(Unshared(template.key.source, fork_safety.bounded(violations)))
        self._queue.extend(self._templates.unshare(template))

    # --- children ----------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Handle children that have ended, and kill orphans that tasks or parses left behind."""
        ended = process.reap()
        # A supervisor may have sent its task's process id just now: without it the task would count as an orphan.
        for supervisor in wait_readable(self._supervisors, 0):
            self._handle_supervisor(supervisor)
        for pid, status, _used in ended:
            self._templates.pids.discard(pid)
            if self._supervisors.reaped(pid) and status != 0:
                self._notify_agent(Reaped(pid, status))
        self._kill_orphans()
        for pid, status, used in ended:
            self._notify_supervisor(pid, status, used)

    def _notify_supervisor(self, task: int, status: int, used: Used) -> None:
        """Send a task's exit status to its supervisor, if the task had become this process's child."""
        for supervisor in self._supervisors:
            if supervisor.task == task:
                with suppress(OSError):
                    messages.send(supervisor.control, Reaped(task, status, used))

    def _kill_orphans(self) -> None:
        known = {*self._templates.pids, *self._supervisors.known_pids}
        for pid in process.children():
            if pid not in known:
                process.kill(pid)

    def _fork_template(self, key: TemplateKey) -> tuple[int, socket.socket]:
        ours, theirs = messages.socket_pair()
        # The agent holds a template to its limits, before that parses.
        agents, templates = messages.socket_pair()
        with agents, templates:
            pid = os.fork()
            if pid == 0:
                ours.close()
                agents.close()
                self._run_template(key, theirs, templates)
            theirs.close()
            if key.parsed:
                self._ask_admission(pid, agents)
        return pid, ours

    def _ask_admission(self, template: int, sock: socket.socket) -> None:
        """Send the agent a template that was just forked, and the `sock` to it."""
        with suppress(OSError):  # the loop will see that the agent is gone
            # The template is not waited for yet, and keeps its number even if it has ended.
            pidfd = os.pidfd_open(template)
            try:
                messages.send(self._agent, Admit(template), (sock.fileno(), pidfd))
            finally:
                os.close(pidfd)

    def _run_template(self, key: TemplateKey, control: socket.socket, admission: socket.socket) -> NoReturn:
        from airbridge.edge_worker.runner import template

        code = 1
        try:
            self._close_in_child()
            template.run(key.source, control, self._sandbox, admission, parse=key.parsed)
            code = 0
        finally:
            os._exit(code)

    def _fork_supervisor(self, handle: Sequence[socket.socket]) -> tuple[int, socket.socket]:
        from airbridge.edge_worker.runner import supervisor_process

        def close_in_child() -> None:
            self._close_in_child()
            # Both ends of the task handle would keep the task's connection open after its template's death.
            for end in handle:
                end.close()

        return supervisor_process.fork(self._sandbox, close_in_child)

    def _close_in_child(self) -> None:
        """Close everything that is the zygote's, in a forked child."""
        self._agent.close()
        self._child_signals.close()
        for spawn in self._spawns:
            spawn.close()
        for template in self._templates:
            template.control.close()
        for supervisor in self._supervisors:
            supervisor.control.close()


def main(control_fd: int, worker_name: str, limits: Limits, sandbox: Sandbox, preload: Sequence[str]) -> None:
    """Load Airflow, report to the agent that it is loaded, and serve."""
    hardening.harden()
    process.name_self("airbridge-zyg", f"airbridge zygote {worker_name}")
    process.ignore_stop_signals()
    process.adopt_orphans()
    agent = socket.socket(fileno=control_fd)
    agent.set_inheritable(False)
    _load(worker_name, preload)
    # Garbage collection would write to every object's header, and so copy the pages that all tasks share.
    gc.collect()
    gc.disable()
    gc.freeze()
    huge_pages.collapse()
    zygote = Zygote(agent, limits, sandbox)
    messages.send(agent, Ready(process.pss_bytes()))
    zygote.serve()
    agent.close()
    zygote.shut_down()


def _load(worker_name: str, preload: Sequence[str]) -> None:
    from airbridge.edge_worker import _airflow
    from airbridge.edge_worker.runner import supervisor_process, template  # noqa: F401 - loaded before the first fork
    from airbridge.edge_worker.runner.forking import warm_up

    _airflow.preload(worker_name, preload)
    warm_up.run()
    if process.thread_count() > 1:
        structlog.get_logger().warning(
            "runner.zygote_has_threads", detail="a plugin starts threads at import; tasks will not have them"
        )


if __name__ == "__main__":
    # Run under its real name: `__main__` would be a second copy of this module.
    from airbridge.edge_worker.runner import zygote as this

    this.main(
        int(sys.argv[1]),
        sys.argv[2],
        Limits(int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])),
        decode(sys.argv[6]),
        sys.argv[7:],
    )
