"""Slow and hostile clients of one gateway, all at once, until the process is ended.

    python -m tests.benchmarks.flood EDGE_PORT OPERATOR_PORT CA_FILE IDENTITY_FILE TOKEN_FILE

Half bodies at both ports, heads that never end, readers that do not read, connections that send nothing, and the bodies that are
costly to parse. Each kind has an address of its own on the loopback network. What the gateway closes is opened again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, ParamSpec

import uvloop

from airbridge.edge_worker.ops.versions import installed

P = ParamSpec("P")

PAUSE_SECONDS: Final = 2.0
"""Until a connection is opened again that was closed."""
UNREAD_SECONDS: Final = 30.0
"""For which a reader does not read."""
OPENED_AT_ONCE: Final = 20
HEAD: Final = b"Host: x\r\nAirBridge-Protocol: 1\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True)
class Slow:
    """Clients that hold connections: from where, how many, to which port, and what each sends."""

    address: str
    count: int
    port: int
    sent: bytes
    reads: bool = True


def slow(edge: int, operators: int) -> tuple[Slow, ...]:
    """Return the floods of slow clients."""
    half = b"Content-Length: 5000\r\n\r\n{"
    return (
        Slow("127.0.0.2", 300, edge, b"POST /edge/v1/enrol HTTP/1.1\r\n" + HEAD + half),
        Slow("127.0.0.3", 48, operators, b"POST /operator/v1/revocations HTTP/1.1\r\n" + HEAD + half),
        Slow("127.0.0.4", 300, edge, b"POST /edge/v1/heartbeat HTTP/1.1\r\nHost: x\r\nX-Slow: "),
        Slow("127.0.0.5", 100, edge, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50, reads=False),
        Slow("127.0.0.6", 500, edge, b""),
    )


def hostile() -> tuple[tuple[str, bytes], ...]:
    """Return the endpoints and bodies of finding 7."""
    versions = installed().model_dump()
    join = {
        "method": "aws_iam",
        "url": "u",
        "headers": {str(number): 0 for number in range(25_000)},
        "body": "",
    }
    enrolment = {
        "region": "us-east-1",
        "pool": "default",
        "worker": "x",
        "csr_pem": "x",
        "join": join,
        "versions": versions,
    }
    beat = {
        "sent_at": datetime.now(UTC).isoformat(),
        "versions": versions,
        "slots_total": 1,
        "slots_used": 0,
        "leases": [0] * 520_000,
    }
    exchange = {"records": [0] * 2_000_000}
    bodies = (("enrol", enrolment), ("heartbeat", beat), ("exchange", exchange))
    return tuple((name, json.dumps(body, separators=(",", ":")).encode()) for name, body in bodies)


class Flood:
    """The clients."""

    def __init__(self, stranger: ssl.SSLContext, thief: ssl.SSLContext, token: str) -> None:
        self._stranger = stranger
        self._thief = thief
        self._bearer = b"Authorization: Bearer " + token.encode() + b"\r\n"
        self._opening = asyncio.Semaphore(OPENED_AT_ONCE)

    async def run(self, edge: int, operators: int) -> None:
        """Run until cancelled."""
        clients = [self._again(self._hold, each) for each in slow(edge, operators) for _ in range(each.count)]
        await asyncio.gather(*clients, *(self._again(self._ask, edge, *each) for each in hostile()))

    async def _again(self, once: Callable[P, Awaitable[None]], *given: P.args, **named: P.kwargs) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await once(*given, **named)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _hold(self, each: Slow) -> None:
        async with self._opening:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", each.port, ssl=self._stranger, local_addr=(each.address, 0)
            )
        with contextlib.closing(writer.transport):
            writer.write(each.sent)
            if not each.reads:
                writer.transport.pause_reading()
                await asyncio.sleep(UNREAD_SECONDS)
            while await reader.read(65_536):
                pass

    async def _ask(self, port: int, name: str, body: bytes) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=self._thief, local_addr=("127.0.0.7", 0)
        )
        with contextlib.closing(writer.transport):
            head = b"POST /edge/v1/%s HTTP/1.1\r\n%s%sContent-Length: %d\r\n\r\n" % (
                name.encode(),
                HEAD,
                self._bearer,
                len(body),
            )
            writer.write(head + body)
            await reader.readuntil(b"\r\n\r\n")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("edge_port", type=int)
    parser.add_argument("operator_port", type=int)
    for name in ("ca_file", "identity_file", "token_file"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    stranger = ssl.create_default_context(cafile=given.ca_file)
    thief = ssl.create_default_context(cafile=given.ca_file)
    thief.load_cert_chain(given.identity_file)
    flood = Flood(stranger, thief, given.token_file.read_text())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(flood.run(given.edge_port, given.operator_port))


if __name__ == "__main__":
    main()
