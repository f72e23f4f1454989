"""A runner without Airflow, for tests of the agent and for trying it out: tasks are Python functions in threads.

`FakeRunner` keeps `task.Runner`'s promises; its supervisors use the real protocol over a real socket.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from airbridge.core.task_options import Options
from airbridge.edge_worker.proxy import protocol
from airbridge.edge_worker.proxy.protocol import Call, Cancel, Reply
from airbridge.edge_worker.runner.limits.limits import Hit
from airbridge.edge_worker.work.task import Exit, HeldBy, TaskSpec

Script = Callable[["FakeSupervisor"], None]


class Cancelled(Exception):  # noqa: N818 - the condition is the name
    """The agent cancelled the task, or hung up."""


class FakeSupervisor:
    """Supervisor of a task script: calls to the Execution API, in the thread of the task."""

    def __init__(self, spec: TaskSpec, sock: socket.socket) -> None:
        self.spec = spec
        self.cancelled = threading.Event()
        self.cancel: Cancel | None = None
        #: The limit that the task is to have run into.
        self.hit: Hit | None = None
        self._sock = sock
        self._ids = itertools.count(1)
        self._replies: dict[int, Reply] = {}
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def call(
        self, method: str, path: str, body: Any = None, query: str = "", *, timeout: float = 60.0
    ) -> Reply:
        """Make a call and return the reply. Raises `Cancelled` if the agent hangs up meanwhile."""
        number = next(self._ids)
        text = None if body is None else json.dumps(body)
        try:
            protocol.send(self._sock, Call(number, method, path, query, text))
        except OSError as error:
            raise Cancelled("the agent hung up") from error
        with self._arrived:
            done = self._arrived.wait_for(
                lambda: number in self._replies or not self._reader.is_alive() or self._hung_up, timeout
            )
            if number in self._replies:
                return self._replies.pop(number)
        raise Cancelled("the agent hung up" if done else f"no reply to {method} {path} in {timeout} s")

    _hung_up = False

    def start(self) -> dict[str, Any]:
        """Report the task as running; return its run context."""
        reply = self.call("PATCH", f"task-instances/{self.spec.grant.ti_id}/run", {"pid": 1})
        context: dict[str, Any] = json.loads(reply.body or "{}")
        return context

    def set_xcom(self, key: str, value: Any) -> Reply:
        """Push an XCom."""
        ti = self.spec.grant.ti
        return self.call("POST", f"xcoms/{ti['dag_id']}/{ti['run_id']}/{ti['task_id']}/{key}", value)

    def succeed(self) -> Reply:
        """Report success."""
        body = {"state": "success", "end_date": "2025-01-01T00:00:00Z"}
        return self.call("PATCH", f"task-instances/{self.spec.grant.ti_id}/state", body)

    def log(self, message: str) -> None:
        """Write a line to the task's log."""
        with self.spec.log_file.open("a") as file:
            file.write(json.dumps({"event": message}) + "\n")

    def _read(self) -> None:
        try:
            while (frame := protocol.receive(self._sock)) is not None:
                with self._arrived:
                    if isinstance(frame, Cancel):
                        self.cancel = frame
                        self.cancelled.set()
                    else:
                        self._replies[frame.id] = frame
                    self._arrived.notify_all()
        except OSError:
            pass
        finally:
            with self._arrived:
                self._hung_up = True
                self.cancelled.set()
                self._arrived.notify_all()


class FakeTask:
    """A running script."""

    def __init__(self, supervisor: FakeSupervisor, sock: socket.socket, script: Script) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._exit: asyncio.Future[Exit] = self._loop.create_future()
        self._supervisor = supervisor
        self._script = script
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of no process."""
        return 0

    @property
    def warm(self) -> bool:
        """See `task.RunningTask.warm`."""
        return False

    async def wait(self) -> Exit:
        """See `task.RunningTask.wait`."""
        return await asyncio.shield(self._exit)

    def kill(self) -> None:
        """See `task.RunningTask.kill`. The thread goes on, as deaf and mute as a killed process."""
        self._end(Exit(None, 9))

    def _run(self) -> None:
        try:
            self._script(self._supervisor)
        except Cancelled:
            found = Exit(0, None, "stopped")
        except Exception as error:  # noqa: BLE001 - what a supervisor would exit with
            found = Exit(1, None, repr(error))
        else:
            found = Exit(0, None, hit=self._supervisor.hit)
        with suppress(RuntimeError):  # the loop may be closed
            self._loop.call_soon_threadsafe(self._end, found)

    def _end(self, found: Exit) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        if not self._exit.done():
            self._exit.set_result(found)


class FakeRunner:
    """Runs `script` for every task."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.tasks: list[FakeTask] = []
        self.specs: list[TaskSpec] = []
        self.options: Options = {}
        self.variables: dict[str, str] = {}
        #: See `task.Runner.limits`.
        self.limits = HeldBy("nothing", "there are no processes")

    def configure(self, options: Options, variables: Mapping[str, str]) -> None:
        """See `task.Runner.configure`."""
        self.options = options
        self.variables = dict(variables)

    async def start(self) -> None:
        """See `task.Runner.start`."""

    async def spawn(self, spec: TaskSpec, proxy_socket: socket.socket) -> FakeTask:
        """See `task.Runner.spawn`."""
        self.specs.append(spec)
        task = FakeTask(FakeSupervisor(spec, proxy_socket), proxy_socket, self._script)
        self.tasks.append(task)
        return task

    async def stop(self) -> None:
        """See `task.Runner.stop`."""
        for task in self.tasks:
            task.kill()
