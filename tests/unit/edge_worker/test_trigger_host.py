"""The agent's end of a trigger host: what a host that keeps to nothing can do to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

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
