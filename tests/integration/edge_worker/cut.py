"""A link that can be cut: a TCP proxy on loopback between worker and gateway."""

from __future__ import annotations

import asyncio
import socket
import threading
from enum import StrEnum


class LinkState(StrEnum):
    """Behaviour of the link."""

    UP = "up"
    REFUSE = "refuse"
    """Connections break, and new ones are closed at once."""
    BLACK_HOLE = "black_hole"
    """Connections stand, and nothing gets through."""
    ONE_WAY = "one_way"
    """Requests arrive; answers are lost."""


class Cut:
    """The proxy. Runs in a thread of its own until stopped."""

    def __init__(self, target_port: int) -> None:
        self.link_state = LinkState.UP
        #: Bytes a second from worker to gateway, of all connections each; None: as fast as it goes.
        self.upload_rate: float | None = None
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self.port = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait(10)

    @property
    def url(self) -> str:
        """The gateway, by way of this link."""
        return f"https://127.0.0.1:{self.port}"

    def set(self, link_state: LinkState) -> None:
        """Change the behaviour; open connections break when the link refuses, and when it is restored."""
        self._loop.call_soon_threadsafe(self._set, link_state)

    def stop(self) -> None:
        """Close everything."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _set(self, link_state: LinkState) -> None:
        self.link_state = link_state
        if link_state is not LinkState.BLACK_HOLE and link_state is not LinkState.ONE_WAY:
            self._break_all()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listener = socket.socket()
        # Small, so that what is written was not only buffered.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        listener.bind(("127.0.0.1", 0))
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=listener))
        self.port = listener.getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self.link_state = LinkState.REFUSE
        self._break_all()
        self._loop.run_until_complete(asyncio.wait_for(self._all_ended(), 10))
        # Transports close their sockets in callbacks: let these run before the loop is closed.
        self._loop.run_until_complete(asyncio.sleep(0.05))
        self._loop.close()

    def _break_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _all_ended(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = self._loop.create_task(self._pair(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pair(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            if self.link_state is LinkState.REFUSE:
                return
            down, up = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._writers.add(up)
            writers.append(up)
            if self.link_state is LinkState.REFUSE:  # type: ignore[comparison-overlap] # set while it was being opened
                return
            pumps = [
                asyncio.ensure_future(self._pump(reader, up, answers=False)),
                asyncio.ensure_future(self._pump(down, writer, answers=True)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for one in writers:
                one.transport.abort()
            await asyncio.gather(*pumps, return_exceptions=True)
        except OSError:
            pass
        finally:
            for one in writers:
                one.transport.abort()
                self._writers.discard(one)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while data := await reader.read(65536):
            while self._holds_back(answers=answers):
                if writer.transport.is_closing():
                    return
                await asyncio.sleep(0.02)
            if self.upload_rate is not None and not answers:
                await asyncio.sleep(len(data) / self.upload_rate)
            writer.write(data)
            await writer.drain()

    def _holds_back(self, *, answers: bool) -> bool:
        return self.link_state is LinkState.BLACK_HOLE or (answers and self.link_state is LinkState.ONE_WAY)


def refused_port() -> int:
    """Return a loopback port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
