"""A trigger host's own process: all triggers of one bundle version, in one event loop."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, cast

import structlog
from airflow.executors.workloads import TaskInstance
from airflow.sdk.execution_time import task_runner
from airflow.serialization.serialized_objects import BaseSerialization, smart_decode_trigger_kwargs
from airflow.triggers.base import BaseTaskEndEvent
from airflow.utils.module_loading import import_string
from setproctitle import setproctitle

from airbridge.core import task_calls
from airbridge.edge_worker._airflow import strict
from airbridge.edge_worker._airflow.client import ProxyClient
from airbridge.edge_worker._airflow.loading import LOG_CHANNEL
from airbridge.edge_worker._airflow.masking import mask_output
from airbridge.edge_worker._airflow.parsing import add_code_paths
from airbridge.edge_worker._airflow.trigger_requests import TriggerComms
from airbridge.edge_worker.proxy.protocol import Reply
from airbridge.edge_worker.runner import process
from airbridge.edge_worker.runner.messages import Job
from airbridge.edge_worker.triggers.messages import (
    LENGTH,
    Answer,
    Ask,
    Cancel,
    Fired,
    Logged,
    Run,
    ToAgent,
    decode_to_host,
    encode,
)

# The trigger whose code is running, in the event loop or in a thread of it.
_current: Final[contextvars.ContextVar[int | None]] = contextvars.ContextVar(
    "airbridge_trigger", default=None
)
# Lines of a traceback that are reported; the last ones say what happened.
_LINES: Final = 100
# Seconds before a trigger starts again; they double, up to the longest.
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
# Bytes of an event, which the control plane takes no more of, or of a line of a log.
_LONGEST: Final = task_calls.OTHER_BODY.size

log = structlog.get_logger(logger_name="airbridge.triggers")


def trigger_main(job: Job, sock: socket.socket) -> None:
    """Run triggers until the agent closes the channel."""
    setproctitle(f"{process.TASK} triggers {job.source.bundle_name}")
    mask_output()
    add_code_paths(job.source)
    channel = Channel(sock)
    task_runner.SUPERVISOR_COMMS = TriggerComms(ProxyClient(cast("Any", channel)))
    LOG_CHANNEL.divert = channel.log
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(Host(channel).run())
    # Threads of triggers may still wait for answers that never come.
    os._exit(0)


class _Loop(asyncio.SelectorEventLoop):
    """Event loop whose threads know which trigger they work for."""

    def run_in_executor(self, executor: Executor | None, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override] # typeshed's overloads
        """Run `func` in a thread, in a copy of the caller's context."""
        return super().run_in_executor(executor, contextvars.copy_context().run, func, *args)


class Channel:
    """The host's end of the socket. A thread reads it, so that a trigger that blocks the event loop still gets its answers."""

    #: As `ProxyConnection`: set once the agent is gone.
    ended: Any = None

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._sending = threading.Lock()
        self._ids = itertools.count(1)
        self._waiting: dict[int, Future[Answer]] = {}

    def start(self, deliver: Callable[[Run | Cancel | None], None]) -> None:
        """Read in a thread. `deliver` is called there with what is not an answer, and with None at the end."""
        threading.Thread(target=self._read, args=(deliver,), name="channel", daemon=True).start()

    def send(self, message: ToAgent) -> None:
        """Send a message from any thread. Nothing happens if the agent is gone."""
        data = encode(message)
        with self._sending, suppress(OSError):
            self._sock.sendall(data)

    def call(self, method: str, path: str, query: str, body: str | None) -> Reply:  # noqa: ARG002 - ProxyConnection's signature
        """Make a call on behalf of the current trigger, and block until it is answered. See `ProxyConnection.call`."""
        number = _current.get()
        if number is None:
            raise RuntimeError(
                "a request to the control plane from code that belongs to no trigger: a thread that the trigger started itself. "
                "Start it with contextvars.copy_context().run"
            )
        ask = Ask(next(self._ids), number, method, path, query)
        answer = self._waiting[ask.id] = Future()
        try:
            self.send(ask)
            found = answer.result()
        finally:
            self._waiting.pop(ask.id, None)
        return Reply(found.id, found.status, found.headers, found.body)

    @staticmethod
    def pause(seconds: float) -> None:
        """Sleep between two attempts of a call. See `ProxyConnection.pause`."""
        time.sleep(seconds)

    def log(self, data: bytes) -> bool:
        """Send the lines that belong to a trigger's log; False for what is the host's own."""
        number = _current.get()
        if number is None:
            return False
        for line in data.splitlines():
            self.send(Logged(number, _bounded_line(_in_file_format(line))))
        return True

    def _read(self, deliver: Callable[[Run | Cancel | None], None]) -> None:
        with suppress(OSError), self._sock.makefile("rb") as file:
            while head := file.read(LENGTH.size):
                (length,) = LENGTH.unpack(head)
                message = decode_to_host(file.read(length))
                if isinstance(message, Answer):
                    waiting = self._waiting.get(message.id)
                    if waiting is not None:
                        waiting.set_result(message)
                else:
                    deliver(message)
        deliver(None)


def _in_file_format(line: bytes) -> bytes:
    """Return a line as the Task SDK's supervisor would write it: the exception's frames under ``error_detail``."""
    try:
        event = json.loads(line)
        if "exception" in event:
            event["error_detail"] = event.pop("exception")
    except (ValueError, TypeError):
        return line
    return json.dumps(event).encode()


def _bounded_line(line: bytes) -> bytes:
    """Return a line of a log, or one in the place of what is too long for a message."""
    if len(line) <= _LONGEST:
        return line
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    event = f"a line of {len(line)} bytes is left out: one of a trigger has at most {_LONGEST} bytes"
    return json.dumps({"timestamp": now, "level": "warning", "event": event}).encode()


class Host:
    """Runs triggers. Each reports one event, or its failure, and ends."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._classes: dict[str, type] = {}
        # Those that the agent has cancelled, as long as they run.
        self._cancelled: set[int] = set()

    async def run(self) -> None:
        """Run what the agent sends until it closes the channel."""
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def handle(message: Run | Cancel | None) -> None:
            match message:
                case Run():
                    self._start(message)
                case Cancel():
                    self._cancel(message.number)
                case _:
                    ended.set()

        self._channel.start(lambda message: _deliver(loop, handle, message))
        await ended.wait()
        for number in self._tasks:
            self._cancel(number)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, run: Run) -> None:
        context = contextvars.copy_context()
        context.run(_current.set, run.number)
        task = asyncio.get_running_loop().create_task(self._run(run), context=context)
        self._tasks[run.number] = task
        task.add_done_callback(lambda _: self._forget(run.number))

    def _forget(self, number: int) -> None:
        self._tasks.pop(number, None)
        self._cancelled.discard(number)

    def _cancel(self, number: int) -> None:
        task = self._tasks.get(number)
        if task is not None:
            self._cancelled.add(number)
            task.cancel()

    async def _run(self, run: Run) -> None:
        """Run a trigger until it has reported. Like Airflow's triggerer, start one again that was cancelled by its own code."""
        pause = 0.0
        while True:
            try:
                # Guarded as well: a cancellation that the trigger requested last is delivered here, as `uncancel` takes back the
                # count alone.
                await asyncio.sleep(pause)
                await self._run_once(run)
            except asyncio.CancelledError:
                if run.number in self._cancelled:
                    raise
            else:
                return
            _uncancel()
            pause = min(2 * pause, _LONGEST_PAUSE) or _FIRST_PAUSE
            log.warning(
                "Trigger was cancelled by its own code; it starts again",
                classpath=run.classpath,
                pause_seconds=pause,
            )

    async def _run_once(self, run: Run) -> None:
        try:
            trigger = self._make(run)
        except BaseException as error:
            log.exception("Trigger failed to load", classpath=run.classpath)
            self._report(run, _failure(error))
            return
        try:
            self._report(run, await _first_event(trigger))
        except asyncio.CancelledError:
            if run.timeout_after is not None and run.timeout_after < datetime.now(UTC):
                log.error("Trigger cancelled due to timeout")  # noqa: TRY400 - its own traceback adds nothing
            raise
        except BaseException as error:
            log.exception("Trigger exited with error", classpath=run.classpath)
            self._report(run, _failure(error))
        finally:
            # Also of a cancellation: what it has reported stands.
            with suppress(Exception, asyncio.CancelledError):
                await trigger.cleanup()

    def _make(self, run: Run) -> Any:
        """Return the trigger, as `TriggerRunner.create_triggers` makes it."""
        if run.classpath not in self._classes:
            self._classes[run.classpath] = import_string(run.classpath)
        decoded = BaseSerialization.deserialize(run.kwargs)
        trigger = self._classes[run.classpath](
            **{name: smart_decode_trigger_kwargs(value) for name, value in decoded.items()}
        )
        trigger.trigger_id = run.trigger_id
        trigger.triggerer_job_id = None
        trigger.task_instance = TaskInstance.model_validate(run.ti)
        trigger.timeout_after = run.timeout_after
        return trigger

    def _report(self, run: Run, body: dict[str, Any]) -> None:
        if strict.enforced():
            body = strict.withhold_event(body)
        text = json.dumps(body)
        if len(text) > _LONGEST:
            why = f"the trigger's event has {len(text)} characters; at most {_LONGEST} are allowed"
            text = json.dumps({"failure": [why]})
        self._channel.send(Fired(run.number, text))


def _uncancel() -> None:
    """Take back what requests to cancel its task a trigger has left."""
    task = asyncio.current_task()
    while task is not None and task.uncancel():
        pass


def _deliver(loop: asyncio.AbstractEventLoop, handle: Callable[[Any], None], message: Any) -> None:
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(handle, message)


async def _first_event(trigger: Any) -> dict[str, Any]:
    """Return the trigger's first event, as the body of its record; a failure if it ends without one."""
    async for event in trigger.run():
        log.info("Trigger fired event", result=repr(event))
        return {"event": _encode(event)}
    log.error("Trigger exited without sending an event. Dependent tasks will be failed.")
    return {"failure": None}


def _encode(event: Any) -> dict[str, Any]:
    if isinstance(event, BaseTaskEndEvent):
        return {"payload": {}, "state": str(event.task_instance_state), "xcoms": event.xcoms}
    return {"payload": BaseSerialization.serialize({"payload": event.payload})}


def _failure(error: BaseException) -> dict[str, Any]:
    lines = [line for part in traceback.format_exception(error) for line in part.splitlines(keepends=True)]
    return {"failure": lines[-_LINES:]}
