"""A trigger's event, from its host to the journal: it outlives the host."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.core.backoff import Backoff
from airbridge.core.protocol import TriggerSpec
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.exceptions import SnapshotError
from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.triggers import messages, triggers
from airbridge.edge_worker.triggers.triggers import Triggers
from airbridge.edge_worker.work.attempts import Attempt, Attempts, Phase
from airbridge.edge_worker.work.task import Exit, TaskSpec

EVENT = '{"event": 1}'


class Fires:
    """Runner of a host whose first trigger fires at once; then it ends, unless it is to stay."""

    pid = 0
    warm = False

    def __init__(self, *, stays: bool) -> None:
        self._stays = stays

    async def spawn(self, spec: TaskSpec, sock: socket.socket) -> Fires:
        self._sock = sock
        sock.setblocking(False)
        self._serving = asyncio.create_task(self._serve(sock))
        return self

    async def _serve(self, sock: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(sock, 65536)
        sock.sendall(messages.encode(messages.Fired(1, EVENT)))
        if not self._stays:
            sock.close()

    async def wait(self) -> Exit:
        return Exit(0, None)

    def kill(self) -> None:
        self._sock.close()


class SlowRecorder:
    """Recorder on a disk that takes its time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.began = asyncio.Event()
        self.calls: list[Call] = []
        self.error: Exception | None = None

    async def write(self, attempt: Attempt, call: Call, *, final: bool) -> None:
        self.began.set()
        await asyncio.sleep(self._seconds)
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.calls.append(call)


class Code:
    """Cache that has all code, unless it has none."""

    missing = False

    @asynccontextmanager
    async def pinned(self, *_: object) -> AsyncIterator[Path]:
        if self.missing:
            raise SnapshotError("it is not in the region's bucket")
        yield Path("/nowhere")

    @asynccontextmanager
    async def environment(self, *_: object) -> AsyncIterator[None]:
        yield None


class NoLogs:
    """Log shipper without logs."""

    def row_for(self, _: object) -> Any:
        return type("Row", (), {"path": "/nowhere/none.log"})

    def end(self, *_: object) -> None: ...


class Setting:
    """Triggers with one trigger, which fires at once."""

    def __init__(self, folder: Path, *, stays: bool, seconds: float) -> None:
        spec = TriggerSpec(trigger_id=7, classpath="mine.Trigger", encoded_kwargs={})
        self.attempt = Attempt(grant().model_copy(update={"trigger": spec, "slots": 0}))
        self.attempts = Attempts(1)
        self.attempts.add(self.attempt)
        self.recorder = SlowRecorder(seconds)
        self.code = Code()
        parts: Any = {"runner": Fires(stays=stays), "bundles": self.code, "logs": NoLogs()}
        self.triggers = Triggers(
            **parts,
            recorder=self.recorder,  # type: ignore[arg-type] # of which it uses one method
            attempts=self.attempts,
            clock=SystemClock(),
            backoff=lambda: Backoff(0.001, 0.001, lambda: 0.5),
            directory=folder,
            proxy_of=lambda _: None,  # type: ignore[arg-type,return-value] # there are no reads
            may_start=lambda: True,
            settle=lambda _: None,
            on_stopped=lambda: None,
        )


def scene(test: Callable[[Setting], Coroutine[Any, Any, None]], folder: Path, **how: Any) -> None:
    async def run() -> None:
        await asyncio.wait_for(test(Setting(folder, **how)), 10)

    asyncio.run(run())


async def recorded(setting: Setting) -> list[str | None]:
    while not setting.attempt.ended:
        await asyncio.sleep(0.01)
    return [call.body for call in setting.recorder.calls]


def test_event_outlives_its_host(tmp_path: Path) -> None:
    """An event is recorded though its host ends before it is on the disk."""

    async def test(setting: Setting) -> None:
        running = asyncio.create_task(setting.triggers.run())
        assert await recorded(setting) == [EVENT]
        assert setting.attempt.phase is Phase.ENDED
        running.cancel()

    scene(test, tmp_path, stays=False, seconds=0.05)


def test_event_outlives_a_stop(tmp_path: Path) -> None:
    """An event is recorded though all hosts are stopped meanwhile, as in a drain."""

    async def test(setting: Setting) -> None:
        running = asyncio.create_task(setting.triggers.run())
        await setting.recorder.began.wait()
        await setting.triggers.stop_all()
        assert setting.recorder.calls == []
        await setting.triggers.recorded()
        assert await recorded(setting) == [EVENT]
        running.cancel()

    scene(test, tmp_path, stays=True, seconds=0.2)


def test_event_that_cannot_be_recorded_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An event that cannot be recorded fails its task: the trigger would be held for ever."""

    async def test(setting: Setting) -> None:
        setting.recorder.error = ValueError("no event")
        running = asyncio.create_task(setting.triggers.run())
        [body] = await recorded(setting)
        assert "failure" in (body or "")
        running.cancel()

    scene(test, tmp_path, stays=True, seconds=0.0)


def test_events_on_their_way_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for more events once enough of them are in the journal."""
    monkeypatch.setattr(triggers, "_MOST_RECORDING", 2 * len(EVENT))

    async def test(setting: Setting) -> None:
        for _ in range(2):
            setting.triggers._fired(setting.attempt, EVENT)
        await asyncio.wait_for(setting.triggers._room(), 0.1)
        setting.triggers._fired(setting.attempt, EVENT)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(setting.triggers._room(), 0.1)
        await asyncio.wait_for(setting.triggers._room(), 5)
        assert setting.recorder.calls

    scene(test, tmp_path, stays=True, seconds=0.3)


def test_missing_code_fails_the_trigger_once(tmp_path: Path) -> None:
    """A trigger whose code cannot be had is failed, and not started again while that is being recorded."""

    async def test(setting: Setting) -> None:
        setting.code.missing = True
        running = asyncio.create_task(setting.triggers.run())
        [body] = await recorded(setting)
        assert "not in the region's bucket" in (body or "")
        assert not setting.triggers._hosts
        running.cancel()

    scene(test, tmp_path, stays=True, seconds=0.1)
