"""A network that can be made to fail: TCP links on loopback, each with weather of its own.

`Network` runs the links in one thread. A `Link` listens on a port of its own and forwards to a target. Its `Weather`
governs the bytes; it can be changed at any time, and applies to open connections too.

Bytes that are held up are not thrown away: as with real TCP they arrive late, unless the connection is broken first.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

LOOPBACK = "127.0.0.1"
_CHUNK = 16 * 1024
_RST_ON_CLOSE = struct.pack("ii", 1, 0)
_TICK_SECONDS = 0.01


@dataclass(frozen=True)
class Flow:
    """Treatment of the bytes of one direction."""

    lost: bool = False
    """Nothing gets through."""
    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    """Up to so much more than the delay, drawn anew for each chunk; order is kept, as TCP keeps it."""
    bytes_per_second: float | None = None
    reset_after_bytes: int | None = None
    """The connection is reset when so many bytes have passed since the weather began."""


@dataclass(frozen=True)
class Weather:
    """Behaviour of a link. The default is fair."""

    up: Flow = Flow()
    """From the one who connects to the target: requests."""
    down: Flow = Flow()
    """From the target back: answers."""
    refuses: bool = False
    """Connections are reset, and new ones refused by the kernel."""
    flaps_every_seconds: float | None = None
    """Refusing and fair by turns, each for so long."""

    @property
    def name(self) -> str:
        """The kind of weather, for reports."""
        return next((name for name, made in KINDS.items() if made == self), "custom")


FAIR = Weather()
REFUSE = Weather(refuses=True)
BLACK_HOLE = Weather(up=Flow(lost=True), down=Flow(lost=True))
LOSE_ANSWERS = Weather(down=Flow(lost=True))
LOSE_REQUESTS = Weather(up=Flow(lost=True))
RESET_MID_ANSWER = Weather(down=Flow(reset_after_bytes=700))
FLAPPING = Weather(flaps_every_seconds=0.7)
SLOW = Weather(up=Flow(delay_seconds=0.15), down=Flow(delay_seconds=0.15))
JITTERY = Weather(up=Flow(jitter_seconds=0.4), down=Flow(jitter_seconds=0.4))
NARROW = Weather(up=Flow(bytes_per_second=8_000), down=Flow(bytes_per_second=8_000))

KINDS = {
    "fair": FAIR,
    "refuse": REFUSE,
    "black hole": BLACK_HOLE,
    "answers lost": LOSE_ANSWERS,
    "requests lost": LOSE_REQUESTS,
    "reset mid-answer": RESET_MID_ANSWER,
    "flapping": FLAPPING,
    "latency": SLOW,
    "jitter": JITTERY,
    "bandwidth": NARROW,
}


class Network:
    """The thread that all links run in. A context manager."""

    def __init__(self, seed: int = 0) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self._links: list[Link] = []
        self.rng = random.Random(seed)

    def __enter__(self) -> Network:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._links:
            link.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def link(self, target_port: int, name: str = "") -> Link:
        """Open a link to a port of this host."""
        link = Link(self, target_port, name)
        self._links.append(link)
        self.do(link.open())
        return link

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the network's thread, and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()


@dataclass(eq=False)
class Link:
    """One port, one target. Made by `Network.link`."""

    network: Network
    target_port: int
    name: str = ""
    port: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """Connections, bytes up and down, resets: what really happened."""
    weather: Weather = FAIR
    _began: dict[str, int] = field(default_factory=dict)
    _connections: set[_Connection] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _placeholder: socket.socket | None = None
    _flapping: asyncio.Task[None] | None = None

    # --- from any thread --------------------------------------------------------------------------

    def set(self, weather: Weather, *, breaks: bool | None = None) -> None:
        """Change the weather. `breaks`: whether connections that stand are reset; by default when it refuses,
        and when it clears up after bytes were held back (the peer has long given them up)."""
        self.network.do(self._set(weather, breaks))

    def retarget(self, port: int) -> None:
        """Forward new connections to another port; those that stand are reset."""
        self.target_port = port
        self.network.do(self._reset_all())

    def close(self) -> None:
        """Stop listening and reset what stands."""
        self.network.do(self._close())

    # --- in the network's thread ------------------------------------------------------------------

    async def open(self) -> None:
        """Take a port and listen."""
        # Bound and never listening: the port stays ours while the link refuses, and the kernel answers with a reset.
        self._placeholder = _bound(0)
        self.port = self._placeholder.getsockname()[1]
        await self._listen()

    async def _listen(self) -> None:
        if self._server is None:
            listener = _bound(self.port)
            self._server = await asyncio.start_server(self._accept, sock=listener)

    async def _refuse(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._reset_all()

    async def _set(self, weather: Weather, breaks: bool | None) -> None:
        if self._flapping is not None:
            self._flapping.cancel()
            self._flapping = None
        before, self.weather = self.weather, weather
        self._began = {way: self.counts[f"bytes {way}"] for way in ("up", "down")}
        held = before.up.lost or before.down.lost
        clears = held and not (weather.up.lost or weather.down.lost)
        if weather.refuses:
            await self._refuse()
            return
        if clears if breaks is None else breaks:
            await self._reset_all()
        await self._listen()
        if weather.flaps_every_seconds is not None:
            self._flapping = asyncio.ensure_future(self._flap(weather.flaps_every_seconds))

    async def _flap(self, seconds: float) -> None:
        while True:
            await self._refuse()
            await asyncio.sleep(seconds)
            await self._listen()
            await asyncio.sleep(seconds)

    async def _close(self) -> None:
        if self._flapping is not None:
            self._flapping.cancel()
        await self._refuse()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._placeholder is not None:
            self._placeholder.close()

    async def _reset_all(self) -> None:
        for connection in [*self._connections]:
            connection.reset()
        await asyncio.sleep(0)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, writer)
        self._connections.add(connection)
        self.counts["connections"] += 1
        try:
            down, up = await asyncio.open_connection(LOOPBACK, self.target_port)
        except OSError:
            connection.reset()
            self._connections.discard(connection)
            return
        pumps = [
            asyncio.ensure_future(self._pump(reader, up, "up", connection)),
            asyncio.ensure_future(self._pump(down, writer, "down", connection)),
        ]
        connection.add(up, pumps)
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        connection.reset()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._connections.discard(connection)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str, connection: _Connection
    ) -> None:
        """Carry one direction until it ends. Chunks travel together: a delay does not add up over them."""
        loop = asyncio.get_running_loop()
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)
        carrier = asyncio.ensure_future(self._deliver(on_the_way, writer, way, connection))
        due = 0.0
        try:
            while data := await reader.read(_CHUNK):
                flow = self._flow(way)
                late = flow.delay_seconds + self.network.rng.uniform(0.0, flow.jitter_seconds)
                due = max(due, loop.time() + late)
                await on_the_way.put((due, data))
            await on_the_way.put((due, b""))
            await carrier
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            carrier.cancel()

    async def _deliver(
        self,
        on_the_way: asyncio.Queue[tuple[float, bytes]],
        writer: asyncio.StreamWriter,
        way: str,
        connection: _Connection,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await on_the_way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            while self._flow(way).lost:
                await asyncio.sleep(_TICK_SECONDS)
            if not data:
                return
            flow = self._flow(way)
            passes = self._passes(flow, way, len(data))
            if flow.bytes_per_second is not None:
                await asyncio.sleep(passes / flow.bytes_per_second)
            try:
                writer.write(data[:passes])
                await writer.drain()
            except OSError:
                return
            self.counts[f"bytes {way}"] += passes
            if passes < len(data):
                self.counts["resets"] += 1
                connection.reset()
                return

    def _flow(self, way: str) -> Flow:
        return self.weather.up if way == "up" else self.weather.down

    def _passes(self, flow: Flow, way: str, size: int) -> int:
        if flow.reset_after_bytes is None:
            return size
        passed = self.counts[f"bytes {way}"] - self._began.get(way, 0)
        if passed + size <= flow.reset_after_bytes:
            return size
        self._began[way] = self.counts[f"bytes {way}"] + max(0, flow.reset_after_bytes - passed)
        return max(0, flow.reset_after_bytes - passed)


class _Connection:
    """Both ends of a connection, to be reset together."""

    def __init__(self, link: Link, writer: asyncio.StreamWriter) -> None:
        self._writers = [writer]
        self._pumps: list[asyncio.Task[None]] = []
        self._reset = False

    def add(self, writer: asyncio.StreamWriter, pumps: list[asyncio.Task[None]]) -> None:
        """Know the other end too, and who carries between the two."""
        self._writers.append(writer)
        self._pumps = pumps
        if self._reset:
            self.reset()

    def reset(self) -> None:
        """Break it as a network does: both ends get a reset."""
        self._reset = True
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and not writer.transport.is_closing():
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            writer.transport.abort()
        for pump in self._pumps:
            pump.cancel()


def _bound(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((LOOPBACK, port))
    return sock
