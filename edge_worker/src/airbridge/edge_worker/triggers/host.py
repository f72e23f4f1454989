"""A trigger host as the agent has it: one sandboxed process, and the triggers that it runs."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog

from airbridge.core.protocol import Resources
from airbridge.edge_worker.exceptions import FrameError, RunnerError
from airbridge.edge_worker.proxy.execution_api import ExecutionApiProxy
from airbridge.edge_worker.proxy.protocol import READS, Call
from airbridge.edge_worker.triggers import messages
from airbridge.edge_worker.triggers.messages import Answer, Ask, Cancel, Fired, Logged, Run
from airbridge.edge_worker.work.attempts import Attempt
from airbridge.edge_worker.work.task import Runner, RunningTask, TaskSpec

log = structlog.get_logger(__name__)

# Reads under way at once, or whose answer the host has not taken, for all its triggers: user code may send any number.
_MOST_ASKS: Final = 256

# Those that wait for their turn, and the bytes of all of these.
_MOST_WAITING: Final = 10_000
_MOST_WAITING_BYTES: Final = 16 * 1024 * 1024
# Of a read's path, and of its query: one may list hundreds of runs.
_ASK_BYTES: Final = 64 * 1024
# Of answers that the host has not taken.
_MOST_HELD_BYTES: Final = 256 * 1024 * 1024
# Messages of one host that are handled in a second: the agent has other things to do than to read what user code logs.
_PER_SECOND: Final = 2000
# Messages after which everything else has its turn.
_AT_ONCE: Final = 50

OnFired = Callable[[Attempt, str], None]
Room = Callable[[], Awaitable[None]]
OnLogged = Callable[[Attempt, bytes], None]


class TriggerHost:
    """Runs triggers in one process until it ends, or is told to stop.

    `on_fired` takes over a trigger with its event: the host, which may end at any time, has no part in what follows. `room` returns
    once more events can be taken.
    """

    def __init__(
        self,
        runner: Runner,
        first: Attempt,
        *,
        log_file: Path,
        proxy_of: Callable[[Attempt], ExecutionApiProxy],
        on_fired: OnFired,
        room: Room,
        on_logged: OnLogged,
    ) -> None:
        self._runner = runner
        self._first = first
        self._log_file = log_file
        self._proxy_of = proxy_of
        self._on_fired = on_fired
        self._room = room
        self._on_logged = on_logged
        self._numbers = 0
        self._by_number: dict[int, Attempt] = {}
        self._running: dict[Attempt, int] = {}
        self._proxies: dict[int, ExecutionApiProxy] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: RunningTask | None = None
        self._handling: set[asyncio.Task[None]] = set()
        self._asking = asyncio.Semaphore(_MOST_ASKS)
        self._waiting_bytes = 0
        self._held_bytes = 0

    @property
    def attempts(self) -> list[Attempt]:
        """The triggers that it runs, or is about to run."""
        return list(self._running)

    def add(self, attempt: Attempt) -> None:
        """Run a trigger."""
        self._numbers += 1
        self._by_number[self._numbers] = attempt
        self._running[attempt] = self._numbers
        if self._writer is not None:
            self._send(self._run_message(self._numbers, attempt))

    def remove(self, attempt: Attempt) -> None:
        """Stop a trigger. What it still sends is ignored, and what it still reads is refused."""
        number = self._running.pop(attempt, None)
        if number is not None:
            self._by_number.pop(number, None)
            self._proxies.pop(number, None)
            self._send(Cancel(number))

    def kill(self) -> None:
        """Kill the process; `run` returns soon."""
        if self._process is not None:
            self._process.kill()

    async def run(self, code: Path, packages: Path | None) -> None:
        """Start the process, and serve it until its end. Raises `RunnerError` if it cannot be started."""
        ours, theirs = socket.socketpair()
        try:
            self._process = await self._runner.spawn(self._spec(code, packages), theirs)
        except BaseException:
            ours.close()
            raise
        reader, self._writer = await asyncio.open_connection(sock=ours)
        log.info("triggers.host_started", bundle=self._first.grant.bundle.name, pid=self._process.pid)
        try:
            for attempt, number in self._running.items():
                self._send(self._run_message(number, attempt))
            await self._serve(reader)
        except (FrameError, OSError) as error:
            log.error("triggers.host_broken", detail=str(error))  # noqa: TRY400 - the traceback adds nothing
        finally:
            writer, self._writer = self._writer, None
            writer.close()
            self._process.kill()
            for task in self._handling:
                task.cancel()
            await asyncio.gather(*self._handling, return_exceptions=True)
            exited = await self._process.wait()
            log.info("triggers.host_ended", code=exited.code, signal=exited.signal, detail=exited.detail)

    def _spec(self, code: Path, packages: Path | None) -> TaskSpec:
        # It is held to the limits of one slot, whatever its triggers' tasks ask for.
        grant = self._first.grant.model_copy(
            update={"trigger": None, "slots": 1, "resources": Resources(), "item_id": uuid4(), "epoch": 0}
        )
        return TaskSpec(
            item_id=grant.item_id,
            epoch=grant.epoch,
            grant=grant,
            bundle_path=code,
            log_file=self._log_file,
            warm=False,
            environment=packages,
            triggers=True,
        )

    def _run_message(self, number: int, attempt: Attempt) -> Run:
        spec = attempt.grant.trigger
        if spec is None:
            raise RunnerError(f"work item {attempt.grant.item_id} is no trigger")
        return Run(
            number, spec.trigger_id, spec.classpath, spec.encoded_kwargs, attempt.grant.ti, spec.timeout_after
        )

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        pace = _Pace()
        while (message := await messages.receive(reader)) is not None:
            await pace.wait()
            await self._drained()
            attempt = self._by_number.get(message.number)
            if attempt is None:
                if isinstance(message, Ask):
                    # Its thread waits for an answer, and with it every trigger that reads in the same thread.
                    self._send(_refusal(message.id, 409, "the trigger has ended"))
                continue
            match message:
                case Logged():
                    self._on_logged(attempt, message.line)
                case Fired():
                    # At once: a second one of it is ignored.
                    self._forget(attempt)
                    self._on_fired(attempt, message.body)
                    await self._room()
                case Ask():
                    self._ask(attempt, message)

    def _forget(self, attempt: Attempt) -> None:
        number = self._running.pop(attempt)
        self._by_number.pop(number, None)
        self._proxies.pop(number, None)

    def _ask(self, attempt: Attempt, ask: Ask) -> None:
        """Have a read answered, or refuse it at once: what waits is bounded, by number and size."""
        size = len(ask.path) + len(ask.query)
        if ask.method not in READS:
            self._send(_refusal(ask.id, 403, "triggers read, and write nothing"))
        elif max(len(ask.path), len(ask.query)) > _ASK_BYTES:
            why = f"path and query of a trigger's request have at most {_ASK_BYTES} bytes each"
            self._send(_refusal(ask.id, 414, why))
        elif not (ask.path.isascii() and ask.query.isascii()):
            self._send(_refusal(ask.id, 400, "path and query of a request are percent-encoded"))
        elif len(self._handling) >= _MOST_WAITING or self._waiting_bytes + size > _MOST_WAITING_BYTES:
            self._send(_refusal(ask.id, 429, "too many requests of triggers wait for an answer"))
        else:
            self._waiting_bytes += size
            self._handle(self._answer(attempt, ask), size)

    def _handle(self, work: Awaitable[None], size: int) -> None:
        def done(task: asyncio.Task[None]) -> None:
            self._handling.discard(task)
            self._waiting_bytes -= size

        task = asyncio.ensure_future(work)
        self._handling.add(task)
        task.add_done_callback(done)

    async def _answer(self, attempt: Attempt, ask: Ask) -> None:
        proxy = self._proxies.get(ask.number)
        if proxy is None:
            proxy = self._proxies[ask.number] = self._proxy_of(attempt)
        async with self._asking:
            reply = await proxy.answer(Call(ask.id, ask.method, ask.path, ask.query))
            answer = Answer(ask.id, reply.status, reply.headers, reply.body)
            size = len(answer.body or "")
            if self._held_bytes + size > _MOST_HELD_BYTES:
                answer, size = _refusal(ask.id, 429, "the triggers do not take the answers that they have"), 0
            self._held_bytes += size
            try:
                self._send(answer)
                with suppress(OSError):
                    await self._drained()
            finally:
                self._held_bytes -= size

    async def _drained(self) -> None:
        """Wait until the host has read most of what it was sent: a host that reads nothing must not fill the agent's memory."""
        if self._writer is not None:
            await self._writer.drain()

    def _send(self, message: messages.ToHost) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        try:
            data = messages.encode(message)
        except FrameError as error:
            if not isinstance(message, Answer):
                return
            data = messages.encode(_refusal(message.id, 500, f"the answer is too large: {error}"))
        self._writer.write(data)


class _Pace:
    """Slows the reading of a host down that sends without end. What it does not read, the host waits with."""

    def __init__(self) -> None:
        self._count = 0
        self._since = time.monotonic()

    async def wait(self) -> None:
        """Let others have their turn, now and then; sleep until the second is over if its messages are used up."""
        self._count += 1
        if self._count % _AT_ONCE == 0:
            await asyncio.sleep(0)
        passed = time.monotonic() - self._since
        if passed >= 1.0:
            self._count, self._since = 0, time.monotonic()
        elif self._count >= _PER_SECOND:
            await asyncio.sleep(1.0 - passed)


def _refusal(ask_id: int, status: int, message: str) -> Answer:
    return Answer(ask_id, status, {}, json.dumps({"detail": {"reason": "airbridge", "message": message}}))
