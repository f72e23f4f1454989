"""The agent's end of a trigger host: what a host that keeps to nothing can do to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.core.protocol import TriggerSpec
from airbridge.edge_worker.proxy.protocol import Call, Reply
from airbridge.edge_worker.triggers import messages
from airbridge.edge_worker.triggers.host import OnFired, Room, TriggerHost
from airbridge.edge_worker.work.attempts import Attempt
from airbridge.edge_worker.work.task import Exit, TaskSpec

SIZE = 1_000_000
# What the agent may hold of answers that nothing takes: 256 are under way at once.
MOST = 300


class Deaf:
    """Runner of a host that sends reads for ever, and takes no answer. It is its own running task."""

    pid = 0
    warm = False

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.sent = 0
        self._sock: socket.socket | None = None

    async def spawn(self, spec: TaskSpec, sock: socket.socket) -> Deaf:
        self._sock = sock
        threading.Thread(target=self._send, args=(sock,), daemon=True).start()
        return self

    def _send(self, sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while True:
                sock.sendall(messages.encode(messages.Ask(self.sent, 1, "GET", "variables/large")))
                self.sent += 1

    async def wait(self) -> Exit:
        await self.ended.wait()
        return Exit(None, 9)

    def kill(self) -> None:
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self.ended.set()


class Large:
    """Proxy whose answers are large, and counted."""

    def __init__(self) -> None:
        self.answers = 0

    async def answer(self, call: Call) -> Reply:
        self.answers += 1
        return Reply(call.id, 200, {}, "x" * SIZE)


async def no_wait() -> None:
    """There is room for events."""


def test_answers_that_a_host_does_not_take_are_bounded() -> None:
    """A host that sends reads without end and takes no answer is read no further, and what waits for it stays bounded."""

    async def test() -> tuple[int, int]:
        runner: Any = Deaf()
        proxy: Any = Large()
        spec = TriggerSpec(trigger_id=7, classpath="mine.Trigger", encoded_kwargs={})
        attempt = Attempt(grant().model_copy(update={"trigger": spec, "slots": 0}))

        def fired(_: Attempt, body: str) -> None:
            raise AssertionError(body)

        host = TriggerHost(
            runner,
            attempt,
            log_file=Path("/dev/null"),
            proxy_of=lambda _: proxy,
            on_fired=fired,
            room=no_wait,
            on_logged=lambda *_: None,
        )
        host.add(attempt)
        running = asyncio.ensure_future(host.run(Path("/nowhere"), None))
        await asyncio.sleep(1.5)
        host.kill()
        await asyncio.wait_for(running, 30)
        return proxy.answers, runner.sent

    answers, sent = asyncio.run(test())
    assert 0 < answers <= MOST
    assert sent > answers


class Sends:
    """Runner of a host that sends given bytes, and counts the answers by status. It is its own running task."""

    pid = 0
    warm = False

    def __init__(self, *frames: bytes) -> None:
        self._frames = frames
        self._sock: socket.socket | None = None
        self.ended = asyncio.Event()
        self.sent = 0
        self.statuses: Counter[int] = Counter()

    async def spawn(self, spec: TaskSpec, sock: socket.socket) -> Sends:
        self._sock = sock
        for work in (self._send, self._receive):
            threading.Thread(target=work, args=(sock,), daemon=True).start()
        return self

    def _send(self, sock: socket.socket) -> None:
        with suppress(OSError):
            for frame in self._frames:
                sock.sendall(frame)
                self.sent += 1

    def _receive(self, sock: socket.socket) -> None:
        with sock, suppress(OSError), sock.makefile("rb") as file:
            while head := file.read(4):
                found = messages.decode_to_host(file.read(int.from_bytes(head, "big")))
                if isinstance(found, messages.Answer):
                    self.statuses[found.status] += 1

    async def wait(self) -> Exit:
        await self.ended.wait()
        return Exit(None, 9)

    def kill(self) -> None:
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self.ended.set()


class Stuck:
    """Proxy that answers nothing, and keeps what it is to answer."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    async def answer(self, call: Call) -> Reply:
        self.calls.append(call)
        await asyncio.Event().wait()
        raise AssertionError


def raw(kind: str, **fields: object) -> bytes:
    """Return a message with any fields, as hostile code may send it."""
    payload = msgspec.msgpack.encode({"type": kind, "number": 1, **fields})
    return len(payload).to_bytes(4, "big") + payload


async def run_host(
    runner: Any, proxy: Any, seconds: float, *, room: Room = no_wait, fired: OnFired = lambda *_: None
) -> TriggerHost:
    """Run a host of a hundred triggers for so many seconds, or until it has ended by itself."""
    spec = TriggerSpec(trigger_id=7, classpath="mine.Trigger", encoded_kwargs={})
    attempts = [Attempt(grant().model_copy(update={"trigger": spec, "slots": 0})) for _ in range(100)]
    host = TriggerHost(
        runner,
        attempts[0],
        log_file=Path("/dev/null"),
        proxy_of=lambda _: proxy,
        on_fired=fired,
        room=room,
        on_logged=lambda *_: None,
    )
    for attempt in attempts:
        host.add(attempt)
    running = asyncio.ensure_future(host.run(Path("/nowhere"), None))
    await asyncio.wait({running}, timeout=seconds)
    host.kill()
    await asyncio.wait_for(running, 30)
    return host


def test_large_request_ends_the_host() -> None:
    """A message larger than any that a host has need of is not read: its host ends."""

    async def test() -> tuple[int, bool]:
        runner = Sends(*[raw("Ask", id=1, method="GET", path="x", body="y" * 4_000_000)] * 20)
        proxy = Stuck()
        await run_host(runner, proxy, 20)
        return len(proxy.calls), runner.sent < 20

    assert (0, True) == asyncio.run(test())


def test_body_of_a_read_is_not_kept() -> None:
    """A read has no body; one that hostile code sends goes no further."""

    async def test() -> list[Call]:
        proxy = Stuck()
        await run_host(Sends(raw("Ask", id=1, method="GET", path="x", body="y" * 1_000_000)), proxy, 1)
        return proxy.calls

    assert [Call(1, "GET", "x")] == asyncio.run(test())


def test_long_request_is_refused() -> None:
    """Path and query have bounds, and are ASCII; what writes is refused, whatever its size."""

    async def test() -> tuple[int, Counter[int]]:
        runner = Sends(
            raw("Ask", id=1, method="GET", path="x" * 70_000),
            raw("Ask", id=2, method="GET", path="x", query="y" * 70_000),
            raw("Ask", id=3, method="GET", path="\U0001f600"),
            raw("Ask", id=4, method="X" * 100_000, path="x"),
        )
        proxy = Stuck()
        await run_host(runner, proxy, 1)
        return len(proxy.calls), runner.statuses

    assert (0, Counter({414: 2, 400: 1, 403: 1})) == asyncio.run(test())


def test_waiting_requests_are_bounded_by_size() -> None:
    """Requests that wait for an answer hold 16 MiB at most, however few they are."""

    async def test() -> tuple[int, Counter[int]]:
        runner = Sends(*(raw("Ask", id=n, method="GET", path="x" * 60_000) for n in range(400)))
        await run_host(runner, Stuck(), 3)
        return runner.sent, runner.statuses

    sent, statuses = asyncio.run(test())
    waiting = 16 * 1024 * 1024 // 60_000
    assert (400, Counter({429: 400 - waiting})) == (sent, statuses)


def test_events_wait_for_room() -> None:
    """A host is read no further while its events wait for the journal."""

    async def test() -> tuple[int, int]:
        written = asyncio.Event()
        taken: list[str] = []
        frames = [raw("Fired", number=n, body="x" * 1_000_000) for n in range(1, 101)]

        async def room() -> None:
            if len(taken) >= 3:
                await written.wait()

        host = run_host(Sends(*frames), Stuck(), 5, room=room, fired=lambda _, body: taken.append(body))
        running = asyncio.ensure_future(host)
        await asyncio.sleep(1)
        before = len(taken)
        written.set()
        await running
        return before, len(taken)

    assert (3, 100) == asyncio.run(test())


class Curious:
    """Runner of a host that makes one read, and keeps the answer. It is its own running task."""

    pid = 0
    warm = False

    def __init__(self, number: int) -> None:
        self.number = number
        self.answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    async def spawn(self, spec: TaskSpec, sock: socket.socket) -> Curious:
        self._reading = asyncio.ensure_future(self._read(sock))
        return self

    async def _read(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            writer.write(messages.encode(messages.Ask(5, self.number, "GET", "variables/colour")))
            while not self.answered.done():
                (length,) = messages.LENGTH.unpack(await reader.readexactly(messages.LENGTH.size))
                message = messages.decode_to_host(await reader.readexactly(length))
                if isinstance(message, messages.Answer):
                    found = {"id": message.id, "status": message.status, "body": message.body}
                    self.answered.set_result(found)
        finally:
            writer.close()

    async def wait(self) -> Exit:
        await self.ended.wait()
        return Exit(None, 9)

    def kill(self) -> None:
        self._reading.cancel()
        self.ended.set()


class Huge:
    """Proxy whose answers do not fit into a message."""

    async def answer(self, call: Call) -> Reply:
        return Reply(call.id, 200, {}, "x" * (messages.MAX_FRAME_BYTES + 1))


@pytest.mark.parametrize(
    ("number", "status", "reason"), [(7, 409, "the trigger has ended"), (1, 500, "too large")]
)
def test_every_read_is_answered(number: int, status: int, reason: str) -> None:
    """A read of a trigger that is not there any more, and one whose answer does not fit, are refused: their threads wait."""

    async def test() -> dict[str, Any]:
        curious = Curious(number)
        runner: Any = curious
        proxy: Any = Huge()
        spec = TriggerSpec(trigger_id=7, classpath="mine.Trigger", encoded_kwargs={})
        attempt = Attempt(grant().model_copy(update={"trigger": spec, "slots": 0}))
        host = TriggerHost(
            runner,
            attempt,
            log_file=Path("/dev/null"),
            proxy_of=lambda _: proxy,
            on_fired=lambda *_: None,
            room=no_wait,
            on_logged=lambda *_: None,
        )
        host.add(attempt)
        running = asyncio.ensure_future(host.run(Path("/nowhere"), None))
        try:
            return await asyncio.wait_for(curious.answered, 10)
        finally:
            host.kill()
            await asyncio.wait_for(running, 30)

    answer = asyncio.run(test())
    assert (answer["id"], answer["status"]) == (5, status)
    assert reason in answer["body"]
