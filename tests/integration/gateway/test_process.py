"""The gateway as a process: starts from Airflow's configuration, gets ready, and ends at SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from tests.integration.gateway.world import TRUST_DOMAIN
from tests.support.airflow_home import environment
from tests.support.moto import free_port
from tests.support.postgres import Postgres

from airbridge.control_plane.identity import secrets

REGIONS = """
home_region = "us-east-1"
[[region]]
name = "us-east-1"
log_bucket = "logs"
bundle_bucket = "dags"
[[region.pool]]
queue_url = "http://127.0.0.1:1/queue"
"""


def variables(directory: Path, url: str, edge_port: int, operator_port: int) -> dict[str, str]:
    regions = directory / "regions.toml"
    regions.write_text(REGIONS)
    options = {
        "REGIONS_FILE": str(regions),
        "SECRETS_DIR": str(directory / "secrets"),
        "TRUST_DOMAIN": TRUST_DOMAIN,
        "GATEWAY_PORT": str(edge_port),
        "OPERATOR_PORT": str(operator_port),
    }
    ours = {f"AIRFLOW__AIRBRIDGE__{name}": value for name, value in options.items()}
    return {**os.environ, **environment(directory / "airflow", url), **ours}


def run(env: dict[str, str], errors: int = subprocess.PIPE) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "airbridge.control_plane.cli", "gateway"]
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=errors, text=True)


def wait_until_ready(url: str, ca_pem: str, process: subprocess.Popen[str], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    with httpx.Client(verify=ssl.create_default_context(cadata=ca_pem), trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    pytest.fail(f"the gateway is not ready; exit status {process.poll()}")


def test_it_starts_serves_and_stops(postgres: Postgres, postgres_template: str, tmp_path: Path) -> None:
    """Ready on both listeners, JSON lines on stderr, exit status 0 at SIGTERM."""
    secrets.create_all(tmp_path / "secrets", TRUST_DOMAIN, datetime.now(UTC))
    ca_pem = (tmp_path / "secrets" / secrets.CA_CERTIFICATE).read_text()
    name = postgres.create(postgres_template)
    ports = (free_port(), free_port())
    process = run(variables(tmp_path, postgres.url(name), *ports))
    try:
        for port in ports:
            wait_until_ready(f"https://127.0.0.1:{port}", ca_pem, process)
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    postgres.drop(name)
    assert process.returncode == 0, errors
    events = [json.loads(line)["event"] for line in errors.splitlines() if line.startswith("{")]
    assert "gateway.started" in events
    assert events[-1] == "gateway.stopped"


def test_a_taken_port_is_named(postgres: Postgres, postgres_template: str, tmp_path: Path) -> None:
    """An address that cannot be had is an error that names the setting."""
    secrets.create_all(tmp_path / "secrets", TRUST_DOMAIN, datetime.now(UTC))
    name = postgres.create(postgres_template)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = run(variables(tmp_path, postgres.url(name), free_port(), port))
        _, errors = process.communicate(timeout=120)
    postgres.drop(name)
    assert process.returncode != 0
    assert f"127.0.0.1:{port}" in errors
    assert "Traceback" not in errors


def test_gateway_requires_its_keys(postgres: Postgres, postgres_template: str, tmp_path: Path) -> None:
    """A missing secrets directory is named, before anything listens."""
    name = postgres.create(postgres_template)
    process = run(variables(tmp_path, postgres.url(name), free_port(), free_port()))
    _, errors = process.communicate(timeout=120)
    postgres.drop(name)
    assert process.returncode != 0
    assert "ca.crt" in errors
    assert "airbridge init" in errors
    assert "Traceback" not in errors
