"""A link that can be cut: a TCP proxy on loopback between worker and gateway."""

from __future__ import annotations

import asyncio
import socket
import threading
from enum import StrEnum


class Weather(StrEnum):
    """How the link behaves."""

    FAIR = "fair"
    REFUSE = "refuse"
    """Connections break, and new ones are closed at once."""
    BLACK_HOLE = "black_hole"
    """Connections stand, and nothing gets through."""
    ONE_WAY = "one_way"
    """Requests arrive; answers are lost."""


class Cut:
    """The proxy. Runs in a thread of its own until stopped."""

    def __init__(self, target_port: int) -> None:
        self.weather = Weather.FAIR
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._pairs: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    @property
    def url(self) -> str:
        """The gateway, by way of this link."""
        return f"https://127.0.0.1:{self.port}"

    def set(self, weather: Weather) -> None:
        """Change the weather; what stands is broken when the link refuses, and when it mends."""
        self._loop.call_soon_threadsafe(self._set, weather)

    def stop(self) -> None:
        """Close everything."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _set(self, weather: Weather) -> None:
        self.weather = weather
        if weather is not Weather.BLACK_HOLE and weather is not Weather.ONE_WAY:
            for pair in self._pairs:
                pair.cancel()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        up: asyncio.StreamWriter | None = None
        try:
            if self.weather is Weather.REFUSE:
                return
            down, up = await asyncio.open_connection("127.0.0.1", self._target_port)
            await asyncio.gather(
                self._pump(reader, up, answers=False), self._pump(down, writer, answers=True)
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._pairs.discard(task)
            for one in (writer, up):
                if one is not None:
                    one.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(65536):
            while self.weather is Weather.BLACK_HOLE or (answers and self.weather is Weather.ONE_WAY):
                await asyncio.sleep(0.02)
            writer.write(data)
            await writer.drain()
        raise ConnectionError("one side ended")


def refused_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
