"""Attack on the metadata of an instance, from the network of its containers.

Three network namespaces: the link of the instance, where the metadata service answers; the host; and a container that
the host forwards for. The rule and the hop limit are those of the synthesised launch templates' source.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BOOT = Path(__file__).parents[2] / "infra/src/airbridge/infra/constructs/compute/worker_image.py"
POOL = BOOT.with_name("worker_pool.py")

# Answers as version 2 of the metadata service does; its packets live for as many hops as the first argument says.
SERVICE = """
import http.server, json, socket, sys
class Metadata(http.server.BaseHTTPRequestHandler):
    def setup(self):
        self.request.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, int(sys.argv[1]))
        super().setup()
    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_PUT(self):
        self.answer("session")
    def do_GET(self):
        assert self.headers["X-aws-ec2-metadata-token"] == "session"
        self.answer("worker-role" if self.path.endswith("/") else json.dumps({"SecretAccessKey": "stolen"}))
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("169.254.169.254", 80), Metadata).serve_forever()
"""

# Code of a task: the session of version 2, the role's name, its credentials.
ATTACK = """
import json, urllib.request
base = "http://169.254.169.254/latest"
def call(path, method="GET", **headers):
    request = urllib.request.Request(base + path, method=method, headers=headers)
    return urllib.request.urlopen(request, timeout=2).read().decode()
session = call("/api/token", "PUT", **{"X-aws-ec2-metadata-token-ttl-seconds": "60"})
listed = "/meta-data/iam/security-credentials/"
role = call(listed, **{"X-aws-ec2-metadata-token": session})
print(json.loads(call(listed + role, **{"X-aws-ec2-metadata-token": session}))["SecretAccessKey"])
"""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass
class Instance:
    """Namespaces of one instance; `service` is the process that answers on its link."""

    name: str
    service: subprocess.Popen[bytes] | None = None

    def inside(self, namespace: str, *command: str) -> None:
        run("ip", "netns", "exec", f"{self.name}-{namespace}", *command)

    def connect(self, first: str, second: str, addresses: tuple[str, str]) -> None:
        run("ip", "link", "add", f"to-{second}", "netns", f"{self.name}-{first}", "type", "veth",
            "peer", "name", f"to-{first}", "netns", f"{self.name}-{second}")  # fmt: skip
        for here, there, address in ((first, second, addresses[0]), (second, first, addresses[1])):
            self.inside(here, "ip", "address", "add", address, "dev", f"to-{there}")
            self.inside(here, "ip", "link", "set", f"to-{there}", "up")

    def start(self, hops: int) -> None:
        command = ["ip", "netns", "exec", f"{self.name}-link", sys.executable, "-c", SERVICE, str(hops)]
        self.service = subprocess.Popen(command)
        # The host itself must always reach it: the agent's credentials come this way.
        for _ in range(50):
            if "stolen" in self.attack("host"):
                return
            time.sleep(0.1)
        pytest.fail("the host does not reach the metadata")

    def attack(self, namespace: str = "container") -> str:
        command = ["ip", "netns", "exec", f"{self.name}-{namespace}", sys.executable, "-c", ATTACK]
        attacked = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        return attacked.stdout + attacked.stderr.strip().rsplit("\n", 1)[-1]


@pytest.fixture
def instance() -> Iterator[Instance]:
    if os.geteuid() or not shutil.which("ip") or not shutil.which("iptables"):
        pytest.skip("network namespaces need root, ip and iptables")
    one = Instance(f"imds-{os.getpid()}")
    names = [f"{one.name}-{each}" for each in ("link", "host", "container")]
    for name in names:
        run("ip", "netns", "add", name)
    try:
        one.connect("link", "host", ("169.254.169.254/30", "169.254.169.253/30"))
        one.connect("host", "container", ("172.17.0.1/16", "172.17.0.2/16"))
        one.inside("container", "ip", "route", "add", "default", "via", "172.17.0.1")
        one.inside("link", "ip", "route", "add", "default", "via", "169.254.169.253")
        one.inside("host", "sysctl", "-qw", "net.ipv4.ip_forward=1")
        one.inside("host", "iptables", "-N", "DOCKER-USER")
        one.inside("host", "iptables", "-I", "FORWARD", "-j", "DOCKER-USER")
        yield one
    finally:
        if one.service is not None:
            one.service.kill()
            one.service.wait()
        for name in names:
            run("ip", "netns", "del", name)


def _rule() -> list[str]:
    """Return the boot script's rule, which its unit adds where it is missing."""
    found = re.search(r"\|\| (iptables -w -I DOCKER-USER [^']+)'", BOOT.read_text())
    assert found, "the boot script adds no rule"
    return found[1].split()


def _hops() -> int:
    found = re.search(r"http_put_response_hop_limit=(\d+)", POOL.read_text())
    assert found, "the launch template sets no hop limit"
    return int(found[1])


def test_open_metadata_is_read(instance: Instance) -> None:
    """The attack works where nothing is closed: a container reads the credentials of the instance's role."""
    instance.start(hops=64)
    assert "stolen" in instance.attack()


def test_rule_closes_metadata(instance: Instance) -> None:
    """The firewall rule alone ends the attack at once, and leaves the host its way."""
    instance.inside("host", *_rule())
    instance.start(hops=64)
    answer = instance.attack()
    assert "stolen" not in answer
    assert "refused" in answer


def test_hop_limit_closes_metadata(instance: Instance) -> None:
    """The hop limit alone ends the attack too: the answer's packets die at the host."""
    instance.start(_hops())
    answer = instance.attack()
    assert "stolen" not in answer
    assert "timed out" in answer
