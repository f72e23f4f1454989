"""AWS on loopback: a moto server in a process of its own, ended by its pid."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import boto3
import pytest
from botocore.config import Config

CREDENTIALS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
START_SECONDS = 30.0


@dataclass(frozen=True)
class Moto:
    """A running moto server. Regions are distinguished by the signing region."""

    url: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point a child process's AWS clients here."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": CREDENTIALS["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": CREDENTIALS["aws_secret_access_key"],
        }

    def client(self, service: str, region: str = "us-east-1", **config: Any) -> Any:
        """A boto3 client of `service` in `region`, with dummy credentials."""
        session = boto3.session.Session(region_name=region, **CREDENTIALS)
        return session.client(service, endpoint_url=self.url, config=Config(**config))

    def bucket(self, name: str, region: str = "us-east-1") -> str:
        """Create a bucket in `region`; its name is returned."""
        kwargs: dict[str, Any] = {}
        if region != "us-east-1":
            kwargs["CreateBucketConfiguration"] = {"LocationConstraint": region}
        self.client("s3", region).create_bucket(Bucket=name, **kwargs)
        return name


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def serve(port: int | None = None) -> Iterator[Moto]:
    """Run a moto server until the block ends."""
    port = port or free_port()
    environment = {**os.environ, "MOTO_PORT": str(port)}
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        moto = Moto(url=f"http://127.0.0.1:{port}", pid=process.pid)
        _wait_until_ready(moto, process)
        yield moto
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=5)


def _wait_until_ready(moto: Moto, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"moto server ended with exit code {process.returncode} while starting")
        try:
            with urlopen(f"{moto.url}/moto-api/", timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"moto server at {moto.url} did not answer within {START_SECONDS:.0f} s")


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    """One moto server for the whole test session."""
    with serve() as running:
        yield running
