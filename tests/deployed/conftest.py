"""The deployment that `make infra-local` left on its emulator. Without it there is nothing to test here."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.platform import LocalPlatform, running

from airbridge.control_plane.local.services import terraform
from airbridge.core.exceptions import ConfigurationError

INFRA = Path(__file__).parents[2] / "infra"
DIRECTORY = INFRA / ".local"


@pytest.fixture(scope="session")
def deployed() -> terraform.Deployed:
    """The deployment; skips where there is none, or its emulator has ended."""
    try:
        found = terraform.read(DIRECTORY)
        urllib.request.urlopen(f"{found.endpoint_url}/moto-api/", timeout=5).close()
    except (ConfigurationError, OSError) as error:
        pytest.skip(f"nothing is deployed (make infra-local): {error}")
    return found


@pytest.fixture(scope="module")
def platform(deployed: terraform.Deployed) -> Iterator[LocalPlatform]:
    """A platform on what Terraform made, each process under its own role."""
    with running(terraform=DIRECTORY, regions=deployed.regions, slots=4) as started:
        yield started


def infra(*words: str, environments: Path = INFRA / "environments") -> str:
    """Run a command of the local deployment and return what it prints; fails with its errors."""
    done = subprocess.run(
        [
            ".venv/bin/python",
            "-m",
            "airbridge.infra.tools.local",
            *words,
            "--environments",
            str(environments),
        ],
        cwd=INFRA,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
