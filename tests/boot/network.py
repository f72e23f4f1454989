"""One network for everything that boots: an address for each task and instance, AWS's names, and the addresses that AWS itself has.

AWS is reached by its own names over TLS, whose certificates this network's CA issued; the emulator's answers are behind them.
Security groups and routes are not modelled: `tests/infra/aws_rules` decides on them.
"""

from __future__ import annotations

import itertools
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import certifi
import trustme
from tests.boot.wires import Namespace, Wire, forwarding, ip, loopback, namespace

GATE = "10.77.0.1"
METADATA = "169.254.169.254"
TASK_CREDENTIALS = "169.254.170.2"
REGIONS = ("us-east-1", "eu-west-1")
_NAMES = (
    "*.amazonaws.com",
    *(f"*.{kind}{region}.amazonaws.com" for region in REGIONS for kind in ("", "s3.", "ecr.", "dkr.ecr.")),
    "*.s3.amazonaws.com",
)


@dataclass
class Network:
    """The network, the names that it resolves and the CA that its servers are certified by."""

    space: Namespace
    folder: Path
    tag: str
    stack: ExitStack
    authority: trustme.CA = field(default_factory=trustme.CA)
    names: dict[str, str] = field(default_factory=dict)
    _hosts: Iterator[int] = field(default_factory=lambda: itertools.count(10))
    _links: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def trusted(self) -> Path:
        """Return the file of trusted CAs: the public ones and this network's."""
        return self.folder / "trusted.pem"

    @property
    def resolver(self) -> Path:
        """Return the `resolv.conf` of everything in the network."""
        return self.folder / "resolv.conf"

    def server_context(self, *names: str) -> ssl.SSLContext:
        """Return a server's side of TLS under these names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names).configure_cert(context)
        return context

    @contextmanager
    def host(self, name: str) -> Iterator[tuple[Namespace, str]]:
        """A namespace with an address of its own, for the length of a block."""
        number = next(self._hosts)
        address = f"10.77.{number // 250}.{number % 250 + 5}"
        with namespace(f"{self.tag}-{name}"[:60]) as space:
            self._link(space, address)
            yield space, address

    def _link(self, space: Namespace, address: str) -> None:
        end = f"{self.tag}{next(self._links)}"
        ip(
            "link",
            "add",
            end,
            "netns",
            self.space.name,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            space.name,
        )
        ip("-n", self.space.name, "link", "set", end, "master", "vpc", "up")
        ip("-n", space.name, "address", "add", f"{address}/16", "dev", "eth0")
        ip("-n", space.name, "link", "set", "eth0", "up")
        ip("-n", space.name, "route", "add", "default", "via", GATE)

    def add_address(self, address: str, *names: str) -> None:
        """Give the network's gate another address, under these names."""
        ip("-n", self.space.name, "address", "add", f"{address}/16", "dev", "vpc")
        self.names.update(dict.fromkeys(names, address))

    def forward(
        self, address: str, port: int, to: tuple[str, int], tls: ssl.SSLContext | None = None
    ) -> ExitStack:
        """Forward a port of the network to one of this machine's loopback, until the network or what is returned is closed."""
        wire = Wire(self.space.listen(address, port), lambda: socket.create_connection(to, timeout=20), tls)
        return self._opened(wire)

    def balance(
        self, address: str, port: int, targets: list[tuple[str, int]], tls: ssl.SSLContext | None = None
    ) -> ExitStack:
        """Forward a balancer's port to its targets, in turn."""
        turn = itertools.cycle(targets)
        return self._opened(
            Wire(self.space.listen(address, port), lambda: self.space.connect(*next(turn)), tls)
        )

    def expose(self, to: tuple[str, int], listener: socket.socket | None = None) -> int:
        """Return a port of this machine's loopback that leads to an address of the network: a free one, or the listener's."""
        listener = listener or loopback()
        self._opened(Wire(listener, lambda: self.space.connect(*to)))
        return int(listener.getsockname()[1])

    def _opened(self, wire: Wire) -> ExitStack:
        opened = ExitStack()
        opened.enter_context(forwarding(wire))
        self.stack.push(opened)
        return opened


@contextmanager
def network(folder: Path, emulator_port: int) -> Iterator[Network]:
    """The network with AWS behind its names, for the length of a block."""
    tag = f"ab{os.getpid() % 100_000}"
    with ExitStack() as stack:
        space = stack.enter_context(namespace(f"{tag}-vpc"))
        made = Network(space, folder, tag, stack)
        _bridge(space)
        made.resolver.write_text(f"nameserver {GATE}\noptions timeout:10 attempts:5\n")
        made.trusted.write_text(Path(certifi.where()).read_text() + made.authority.cert_pem.bytes().decode())
        _resolve(made)
        made.forward(GATE, 443, ("127.0.0.1", emulator_port), made.server_context(*_NAMES))
        yield made


def _bridge(space: Namespace) -> None:
    ip("-n", space.name, "link", "add", "vpc", "type", "bridge")
    for address in (f"{GATE}/16", f"{METADATA}/32", f"{TASK_CREDENTIALS}/32"):
        ip("-n", space.name, "address", "add", address, "dev", "vpc")
    ip("-n", space.name, "link", "set", "vpc", "up")


def _resolve(made: Network) -> None:
    """Answer names: those that are known, and every one of AWS's."""
    bound = made.space.datagrams(GATE, 53)
    made.stack.callback(bound.close)

    def answer() -> None:
        while True:
            try:
                asked, sender = bound.recvfrom(512)
            except OSError:
                return
            with suppress(OSError, IndexError, UnicodeDecodeError):
                bound.sendto(reply(asked, made.names), sender)

    threading.Thread(target=answer, daemon=True).start()


def reply(asked: bytes, names: dict[str, str]) -> bytes:
    """Return the answer to a question of the DNS: an address, or that there is no such name (RFC 1035)."""
    labels, position = [], 12
    while length := asked[position]:
        labels.append(asked[position + 1 : position + 1 + length].decode())
        position += 1 + length
    end = position + 5
    name = ".".join(labels).lower()
    address = names.get(name, GATE if name.endswith(".amazonaws.com") else None)
    wants_address = asked[position + 1 : position + 3] == b"\0\1"
    head = asked[:2] + (b"\x81\x80" if address else b"\x81\x83") + b"\0\1"
    if not address or not wants_address:
        return head + b"\0\0\0\0\0\0" + asked[12:end]
    record = b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4" + socket.inet_aton(address)
    return head + b"\0\1\0\0\0\0" + asked[12:end] + record
