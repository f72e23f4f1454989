"""A TCP proxy on loopback with a switch: it passes everything on, or breaks every connection and takes none.

Run by itself: ``python -m tests.benchmarks.switch LISTEN_PORT TARGET_PORT``; each line of its standard input is ``on`` or ``off``.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop

LOOPBACK = "127.0.0.1"
BACKLOG = 4096
_CHUNK = 65_536


class Switch:
    """See the module."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._on = True
        self._writers: set[asyncio.StreamWriter] = set()

    def turn(self, *, on: bool) -> None:
        self._on = on
        if not on:
            for writer in self._writers:
                writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._on:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._target_port)
            both = {writer, far_writer}
            self._writers |= both
            try:
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
            finally:
                self._writers -= both


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()


async def main(listen_port: int, target_port: int) -> None:
    """Serve until standard input ends."""
    switch = Switch(target_port)
    server = await asyncio.start_server(switch.accept, LOOPBACK, listen_port, backlog=BACKLOG)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    async with server:
        while line := await commands.readline():
            switch.turn(on=line.strip() == b"on")
            print("done", flush=True)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
