"""AWS accounts on this machine: roles at an emulator, and the container registries of every account and region under ECR's names.

Real are STS, ECR's API (moto), TLS, sign-in, and registries that keep apart what accounts and regions have. ECR's names lead to loopback
through a proxy, which clients find in ``HTTPS_PROXY``.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
import trustme
from tests.support.moto import Moto, free_port, serve
from tests.support.workflows.hub import StepFailed

ISSUER: Final = "token.actions.githubusercontent.com"
_HOST: Final = re.compile(r"^(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com$")


@dataclass
class Accounts:
    """Accounts with roles and registries. `roles` are those of a synthesised bootstrap stack, by their ARN."""

    moto: Moto
    proxy: str
    certificates: Path
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: list[tuple[str, str]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which a machine's programs reach the accounts."""
        return {
            "AWS_ENDPOINT_URL": self.moto.url,
            "HTTPS_PROXY": self.proxy,
            "NO_PROXY": "127.0.0.1,localhost",
            "SSL_CERT_FILE": str(self.certificates),
        }

    def bootstrap(self, account: str, stack: Path) -> None:
        """Make the roles of a synthesised bootstrap stack known."""
        resources = json.loads(stack.read_text())["resource"]
        for role in resources["aws_iam_role"].values():
            self.roles[f"arn:aws:iam::{account}:role/{role['name']}"] = role

    def assume(self, role: str, region: str, seconds: int, subject: str) -> dict[str, str]:
        """Return credentials of a role, if its trust and its longest session allow; raises `StepFailed`.

        The emulator gives credentials of the role's account to anybody, so the trust policy is read here.
        """
        found = self.roles.get(role)
        if found is None:
            raise StepFailed(f"there is no role {role}")
        (statement,) = json.loads(found["assume_role_policy"])["Statement"]
        trusted = statement["Condition"]["StringEquals"]
        if trusted != {f"{ISSUER}:aud": "sts.amazonaws.com", f"{ISSUER}:sub": subject}:
            raise StepFailed(f"{role} does not trust {subject}")
        if seconds > int(found.get("max_session_duration", 3600)):
            raise StepFailed(f"{role} has no session of {seconds} s")
        sts = boto3.client(
            "sts",
            endpoint_url=self.moto.url,
            region_name=region,
            aws_access_key_id="nobody",
            aws_secret_access_key="nothing",
        )
        session = sts.assume_role_with_web_identity(
            RoleArn=role, RoleSessionName="job", WebIdentityToken="a.b.c", DurationSeconds=seconds
        )["Credentials"]
        self.sessions.append((role, subject))
        return {
            "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
            "AWS_SESSION_TOKEN": session["SessionToken"],
        }


@contextmanager
def accounts(folder: Path, regions: Mapping[str, Sequence[str]]) -> Iterator[Accounts]:
    """Run the accounts, each with a registry in these regions, until the block ends."""
    authority = trustme.CA()
    folder.mkdir()
    certificates = folder / "ca.pem"
    authority.cert_pem.write_to_path(certificates)
    ports = {
        f"{account}.dkr.ecr.{region}.amazonaws.com": free_port()
        for account, there in regions.items()
        for region in there
    }
    served = authority.issue_cert(*ports)
    served.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(each.bytes() for each in served.cert_chain_pems))
    with ExitStack() as stack:
        moto = stack.enter_context(serve())
        for host, port in ports.items():
            stack.enter_context(_registry(folder, host, port))
        proxy = stack.enter_context(_proxy(ports))
        for port in ports.values():
            _await(port)
        yield Accounts(moto, proxy, certificates)


@contextmanager
def _registry(folder: Path, host: str, port: int) -> Iterator[None]:
    """Run the registry of an account and region. It takes the password that the emulator gives to the account's roles."""
    own = folder / host
    own.mkdir()
    found = _HOST.match(host)
    assert found
    password = f"{found['account']}-auth-token"
    program = 'print "AWS:" . crypt($ARGV[0], q($2b$05$abcdefghijklmnopqrstuu)) . "\\n"'
    hashed = subprocess.run(
        ["perl", "-e", program, password], check=True, capture_output=True, text=True
    ).stdout
    (own / "users").write_text(hashed)
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(own / "data")}},
        "auth": {"htpasswd": {"realm": host, "path": str(own / "users")}},
        "http": {
            "addr": f"127.0.0.1:{port}",
            "tls": {"certificate": str(folder / "cert.pem"), "key": str(folder / "key.pem")},
        },
    }
    (own / "config.yml").write_text(json.dumps(config))
    with (own / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(own / "config.yml")], stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _await(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def _proxy(ports: Mapping[str, int]) -> Iterator[str]:
    """Run a proxy that knows these hosts, and no others."""

    class Tunnel(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            host = self.rfile.readline().split()[1].decode().rpartition(":")[0]
            while self.rfile.readline().strip():
                pass
            if host not in ports:
                self.wfile.write(b"HTTP/1.1 502 no such host\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", ports[host])) as there:
                self.wfile.write(b"HTTP/1.1 200 connected\r\n\r\n")
                _join(self.connection, there)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Tunnel) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways until one side has no more."""
    while True:
        for ready in select.select([one, other], [], [])[0]:
            content = ready.recv(65536)
            if not content:
                return
            (other if ready is one else one).sendall(content)


def stacks(root: Path, folder: Path, environment: str) -> Path:
    """Synthesise the stacks of an environment of the checkout; return the bootstrap stack's file."""
    folder.mkdir(parents=True)
    variables = {**os.environ, "AIRBRIDGE_ENV": environment, "CDKTF_OUTDIR": str(folder)}
    command = [str(root / "infra/.venv/bin/python"), "-m", "airbridge.infra.app"]
    subprocess.run(command, cwd=root / "infra", env=variables, check=True, capture_output=True)
    return folder / "stacks/bootstrap/cdk.tf.json"
