"""Attack with joins by IAM role that AWS has to judge: finding 17. STS is a server here that never answers."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from botocore.credentials import Credentials
from tests.integration.gateway.test_iam_join import REGION, Cloud, signed
from tests.integration.gateway.world import Worker, World
from tests.security.attacks.floods import HEAD, flood, stranger
from tests.security.registry import attack

from airbridge.core.catalogue import Catalogue

JOINS = 200


@dataclass
class SilentSts:
    """Server that accepts connections and never answers."""

    listening: socket.socket
    begun: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Its address, for a region's ``endpoint_url``."""
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def accept(self) -> None:
        """Accept until the socket is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listening.accept()
                threading.Thread(target=self._hold, args=(connection,), daemon=True).start()

    def _hold(self, connection: socket.socket) -> None:
        self.begun.set()
        with connection, contextlib.suppress(OSError):
            while connection.recv(65_536):
                pass


@contextmanager
def silent_sts() -> Iterator[SilentSts]:
    """Run the server."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        sts = SilentSts(listening)
        threading.Thread(target=sts.accept, daemon=True).start()
        yield sts
        listening.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class SlowAws:
    """A gateway whose region has one pool with a role, which the silent STS is to judge, and a plain one."""

    world: World
    sts: SilentSts


def slow_catalogue(sts: SilentSts) -> Catalogue:
    """Return the region catalogue of such a gateway."""
    return Catalogue.parse(
        f"""
        home_region = "{REGION}"
        [[region]]
        name = "{REGION}"
        log_bucket = "logs"
        bundle_bucket = "dags"
        endpoint_url = "{sts.url}"
        [[region.pool]]
        queue_url = "{sts.url}/eu"
        role_arn = "arn:aws:iam::123456789012:role/edge-eu"
        [[region.pool]]
        name = "plain"
        queue_url = "{sts.url}/plain"
        """
    )


@attack(17)
def bogus_iam_joins(world: SlowAws) -> None:
    """200 joins that only AWS can tell from honest ones, while AWS does not answer: claims and enrolments go on.

    In one queue with the joins a claim would wait for two minutes.
    """
    gateway, sts = world.world, world.sts
    worker, token = gateway.worker(REGION, "plain"), gateway.join_token(REGION, "plain")
    other = Worker(gateway, REGION, "plain", "another")
    [item] = gateway.items(region=REGION, pool="plain")
    envelope = gateway.envelope(item)
    bogus = Worker(gateway, REGION, "default", "bogus-i-0abc")
    someone = Credentials("AKIDEXAMPLE", "secret")
    body = json.dumps(signed(Cloud(sts.url, someone, someone, someone), bogus, someone)).encode()
    sent = b"POST /edge/v1/enrol HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (HEAD, len(body), body)
    with flood(gateway.gateway.edge_port, [(stranger(gateway), sent)] * JOINS):
        assert sts.begun.wait(10), "no join reached AWS"
        worker.beat()
        assert len(worker.claim(envelope).grants) == 1
        other.enrol(token)
