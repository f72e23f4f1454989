"""The agent's end of a trigger host: what a host that keeps to nothing can do to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.core.protocol import TriggerSpec
from airbridge.edge_worker.proxy.protocol import Call, Reply
from airbridge.edge_worker.triggers import messages
from airbridge.edge_worker.triggers.host import TriggerHost
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
