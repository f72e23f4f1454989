"""A TCP proxy on loopback that delays every byte by half a round trip in each direction, and counts them.

Run by itself: ``python delay.py LISTEN_PORT TARGET_PORT ROUND_TRIP_MS COUNTS_FILE``. The counts file is written anew
whenever something was counted: bytes in both directions, connections, and requests where HTTP is not encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
_CHUNK = 65_536
_BACKLOG_CHUNKS = 1024


@dataclass
class Counts:
    """Traffic so far."""

    passed_bytes: int = 0
    connections: int = 0
    requests: int = 0
    """Heads of HTTP requests seen; encrypted ones are not."""

    def add(self, data: bytes) -> None:
        """Count the passing data."""
        self.passed_bytes += len(data)
        self.requests += data.count(b" HTTP/1.1\r\n")


async def serve(
    listen_port: int, target_port: int, round_trip_seconds: float, counts: Counts | None = None
) -> asyncio.Server:
    """Start the proxy and return its server. Connecting costs one round trip, as it would on a real path."""

    counted = counts or Counts()

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counted.connections += 1
        await asyncio.sleep(round_trip_seconds)
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, target_port)
        except OSError:
            writer.close()
            return
        one_way = round_trip_seconds / 2
        pumps: list[Coroutine[Any, Any, None]] = [
            _pump(reader, far_writer, one_way, counted),
            _pump(far_reader, writer, one_way, counted),
        ]
        await asyncio.gather(*pumps)

    return await asyncio.start_server(on_connection, LOOPBACK, listen_port)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one_way: float, counts: Counts
) -> None:
    """Pass on what comes, each chunk `one_way` seconds after it came, without holding up the next."""
    clock = asyncio.get_running_loop().time
    late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_BACKLOG_CHUNKS)

    async def receive() -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK)
            except OSError:
                data = b""
            counts.add(data)
            await late.put((clock() + one_way, data))

    receiving = asyncio.create_task(receive())
    with contextlib.suppress(OSError):
        while True:
            due, data = await late.get()
            await asyncio.sleep(max(0.0, due - clock()))
            if not data:
                break
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError):
        writer.close()
    receiving.cancel()


async def _main(listen_port: int, target_port: int, round_trip_ms: float, counts_file: Path) -> None:
    counts = Counts()
    server = await serve(listen_port, target_port, round_trip_ms / 1000, counts)
    async with server:
        written = None
        while True:
            now = asdict(counts)
            if now != written:
                draft = counts_file.with_suffix(".draft")
                draft.write_text(json.dumps(now))
                draft.replace(counts_file)
                written = now
            await asyncio.sleep(0.1)


def read(counts_file: Path) -> Counts:
    """Return what a proxy has counted so far."""
    try:
        return Counts(**json.loads(counts_file.read_text()))
    except FileNotFoundError:
        return Counts()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])))
