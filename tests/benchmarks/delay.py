"""A TCP proxy on loopback that delays every byte by half a round trip in each direction.

Run by itself: ``python -m tests.benchmarks.delay LISTEN_PORT TARGET_PORT ROUND_TRIP_MS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Coroutine
from typing import Any

LOOPBACK = "127.0.0.1"
_CHUNK = 65_536
_BACKLOG_CHUNKS = 1024


async def serve(listen_port: int, target_port: int, round_trip_seconds: float) -> asyncio.Server:
    """Start the proxy and return its server. Connecting costs one round trip, as it would on a real path."""

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(round_trip_seconds)
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, target_port)
        except OSError:
            writer.close()
            return
        one_way = round_trip_seconds / 2
        pumps: list[Coroutine[Any, Any, None]] = [
            _pump(reader, far_writer, one_way),
            _pump(far_reader, writer, one_way),
        ]
        await asyncio.gather(*pumps)

    return await asyncio.start_server(on_connection, LOOPBACK, listen_port)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one_way: float) -> None:
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


async def _main(listen_port: int, target_port: int, round_trip_ms: float) -> None:
    server = await serve(listen_port, target_port, round_trip_ms / 1000)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
