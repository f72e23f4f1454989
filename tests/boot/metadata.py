"""The two servers that AWS gives what it starts: ECS's credentials endpoint, and the instance metadata service, version 2.

Who asks is known by the address of the network. The answers of the instance metadata end after one hop, as the launch template says.
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.boot.account import Session
from tests.boot.network import METADATA, TASK_CREDENTIALS, Network
from tests.boot.wires import serving


@dataclass
class Identity:
    """An instance as its metadata shows it."""

    instance: str
    region: str
    role: str
    session: Callable[[], Session]
    #: Documents by path below `meta-data/`; a missing one is answered with 404.
    documents: dict[str, str] = field(
        default_factory=lambda: {"autoscaling/target-lifecycle-state": "InService"}
    )


@dataclass
class Directory:
    """Who is who: tasks by the path of their credentials, instances by their address."""

    tasks: dict[str, Callable[[], Session]] = field(default_factory=dict)
    instances: dict[str, Identity] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)

    def add_task(self, session: Callable[[], Session]) -> str:
        """Return the path at which a task finds its credentials."""
        path = f"/v2/credentials/{secrets.token_hex(16)}"
        self.tasks[path] = session
        return path

    def document(self, address: str, path: str) -> str | None:
        """Return what an instance reads at a path; None where there is nothing."""
        identity = self.instances.get(address)
        if identity is None:
            return None
        credentials = "iam/security-credentials/"
        if path == credentials:
            return identity.role
        if path == f"{credentials}{identity.role}":
            return json.dumps(identity.session().document)
        fixed = {"instance-id": identity.instance, "placement/region": identity.region}
        return {**fixed, "placement/availability-zone": f"{identity.region}a", **identity.documents}.get(path)


def _answer(handler: BaseHTTPRequestHandler, status: int, text: str = "") -> None:
    body = text.encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


class _Quiet(BaseHTTPRequestHandler):
    directory: Directory

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


class _Credentials(_Quiet):
    def do_GET(self) -> None:
        session = self.directory.tasks.get(self.path)
        _answer(self, 200, json.dumps(session().document)) if session else _answer(self, 404)


class _Metadata(_Quiet):
    def setup(self) -> None:
        # HttpPutResponseHopLimit of the launch template: an answer does not pass the instance.
        self.request.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        super().setup()

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            return _answer(self, 400)
        token = secrets.token_urlsafe(24)
        self.directory.tokens.add(token)
        return _answer(self, 200, token)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") not in self.directory.tokens:
            return _answer(self, 401)
        found = self.directory.document(self.client_address[0], self.path.removeprefix("/latest/meta-data/"))
        return _answer(self, 200, found) if found is not None else _answer(self, 404)


@contextmanager
def metadata(network: Network) -> Iterator[Directory]:
    """Both servers, for the length of a block."""
    directory = Directory()
    credentials = type("Credentials", (_Credentials,), {"directory": directory})
    instances = type("Metadata", (_Metadata,), {"directory": directory})
    space = network.space
    with (
        serving(space.listen(TASK_CREDENTIALS, 80), credentials),
        serving(space.listen(METADATA, 80), instances),
    ):
        yield directory
