"""More gateway processes beside the local platform's, over the same database and keys, each on ports of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.moto import free_port

START_SECONDS = 120.0


@dataclass(frozen=True)
class GatewayProcess:
    """A gateway's process and its port for workers."""

    pid: int
    port: int


class Platform(Protocol):
    """Platform whose gateway is the first one; `Edge` is one."""

    gateway_port: int

    def main_pids(self) -> Mapping[str, int]:
        """Return the process ids of its gateway, and of others, by name."""


@contextmanager
def beside(platform: Platform, count: int) -> Iterator[list[GatewayProcess]]:
    """Run `count` gateways in all: the platform's, and others with its command, environment and keys."""
    pid, port = platform.main_pids()["gateway"], platform.gateway_port
    if count > 1:
        pid = _restarted(platform, pid, port)
    found = [GatewayProcess(pid, port)]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count - 1):
            edge, operators = free_port(), free_port()
            process = _start(pid, edge, operators)
            started.append(process)
            _wait_until_open(edge, process)
            found.append(GatewayProcess(process.pid, edge))
        yield found
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(60)


def _restarted(platform: Platform, pid: int, port: int) -> int:
    """End the gateway, and return the process that takes its place.

    Only that one's command and environment are in /proc: a platform's first processes are forked from one with its own.
    """
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(KeyError):  # it is being restarted
            now = platform.main_pids()["gateway"]
            if now != pid and _is_open(port):
                return now
        time.sleep(0.2)
    raise TimeoutError(f"the gateway was not restarted within {START_SECONDS:.0f} s")


def _start(pid: int, edge: int, operators: int) -> subprocess.Popen[bytes]:
    own = dict(
        each.decode().split("=", 1)
        for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if b"=" in each
    )
    command = [each.decode() for each in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if each]
    ports = {
        "AIRFLOW__AIRBRIDGE__GATEWAY_PORT": str(edge),
        "AIRFLOW__AIRBRIDGE__OPERATOR_PORT": str(operators),
    }
    place = Path(f"/proc/{pid}/cwd").readlink()
    return subprocess.Popen(
        command, env={**own, **ports}, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _is_open(port):
            return
        time.sleep(0.2)
    raise TimeoutError(f"the gateway on port {port} did not start within {START_SECONDS:.0f} s")


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
