"""schemathesis over the gateway's own OpenAPI, as an enrolled worker and as an anonymous caller: no answer is a server error.

Runs where `AIRBRIDGE_SCHEMATHESIS` names the program (``make fuzz-api`` installs it in an environment of its own).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.integration.gateway.world import World, running

from airbridge.core.protocol import PROTOCOL_VERSION, VERSION_HEADER

PROGRAM = os.environ.get("AIRBRIDGE_SCHEMATHESIS")
EXAMPLES = os.environ.get("AIRBRIDGE_FUZZ_EXAMPLES", "25")

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="make fuzz-api runs it"),
    pytest.mark.timeout(1800),
]


@pytest.fixture
def unlimited(world: World, tmp_path: Path) -> Iterator[World]:
    """Run a gateway without request rate limits."""
    with running(
        world.metadata, tmp_path, gateway_requests_per_second=0.0, gateway_requests_per_second_per_worker=0.0
    ) as it:
        yield it
        it.close_workers()


@pytest.mark.parametrize("who", ["worker", "stranger"])
def test_no_request_makes_a_server_error(unlimited: World, tmp_path: Path, who: str) -> None:
    """Valid and invalid requests to every endpoint, made from the description: none is answered 5xx."""
    ca = tmp_path / "ca.pem"
    ca.write_text(unlimited.ca.certificate_pem)
    command = [
        PROGRAM or "",
        "run",
        f"{unlimited.edge_url}/openapi.json",
        "--checks=not_a_server_error",
        f"--max-examples={EXAMPLES}",
        "--phases=examples,coverage,fuzzing",
        "--mode=all",
        "--seed=1",
        f"--tls-verify={ca}",
        f"--header={VERSION_HEADER}: {PROTOCOL_VERSION}",
        "--no-color",
    ]
    if who == "worker":
        worker = unlimited.worker()
        pem = tmp_path / "worker.pem"
        key = worker.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        pem.write_text((worker.certificate_pem or "") + key.decode())
        command += [f"--request-cert={pem}", f"--header=Authorization: Bearer {worker.token}"]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    print(ran.stdout[-3000:])
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " 5" not in "".join(line for line in ran.stdout.splitlines() if "Server error" in line)
