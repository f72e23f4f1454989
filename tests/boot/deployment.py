"""The environment that is deployed to be booted, and what its deployment on the emulator left.

It is the shape of a first deployment: sign-in by OpenID Connect, two regions, one copy of each service, images by digest of a build.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.boot.images import IMAGES, Build

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
NAME = "boot"
UI = "airflow.boot.test"
ISSUER = "https://login.boot.test"
_PLANE = f"""
schedulers = 1
api_servers = 1
gateways = 1

[control_plane.auth]
url = "https://{UI}"
issuer = "{ISSUER}"
client_id = "airbridge"
client_secret = true

[control_plane.auth.roles]
owners = "admin"

[images]"""


@dataclass(frozen=True)
class Deployment:
    """A deployment on an emulator: its folder and its port."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        """Return the emulator's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def outputs(self) -> dict[str, Any]:
        """Return the stacks' outputs, by stack."""
        found: dict[str, Any] = json.loads((self.folder / "local" / "outputs.json").read_text())
        return found

    @property
    def plane(self) -> dict[str, Any]:
        """Return the outputs of the control plane."""
        found: dict[str, Any] = self.outputs["control-plane"]
        return found

    @property
    def regions(self) -> dict[str, dict[str, Any]]:
        """Return the outputs of the edge stacks, by region."""
        return {name.removeprefix("edge-"): each for name, each in self.outputs.items() if name.startswith("edge-")}

    @property
    def client_secret(self) -> str:
        """Return the secret of the UI's client at the issuer."""
        return (self.folder / "keys" / "ui-oidc.secret").read_text()

    def infra(self, *words: str) -> None:
        """Run `tools.local` on this deployment; RuntimeError with its last lines."""
        command = [
            str(INFRA / ".venv/bin/python"), "-m", "airbridge.infra.tools.local", *words, "--environment", NAME,
            "--environments", str(self.folder / "environments"), "--directory", str(self.folder / "local"),
            "--keys", str(self.folder / "keys"), "--port", str(self.port),
        ]  # fmt: skip
        done = subprocess.run(command, cwd=INFRA, text=True, check=False, stdout=subprocess.PIPE, stderr=sys.stderr)
        if done.returncode:
            raise RuntimeError(f"{words[0]}: {done.stdout[-2000:]}")


def text(build: Build) -> str:
    """Return the environment file: `local`, with sign-in, in another tier, and with the images of a build."""
    source = (INFRA / "environments" / "local.toml").read_text()
    source = source.replace('name = "local"', f'name = "{NAME}"').replace('tier = "local"', 'tier = "development"')
    for image in IMAGES:
        source = re.sub(rf'"{image}@sha256:[0-9a-f]{{64}}"', f'"{image}@{build.digest(image)}"', source)
    return source.replace("\n[images]", _PLANE, 1)


def prepare(folder: Path, build: Build) -> Deployment:
    """Write the environment file and make the keys, as a first deployment does."""
    (folder / "environments").mkdir(parents=True)
    (folder / "environments" / f"{NAME}.toml").write_text(text(build))
    init = ["-m", "airbridge.control_plane.cli", "init", str(folder / "keys"), "--trust-domain", "airbridge.local"]
    subprocess.run([sys.executable, *init, "--root-dir", str(folder / "root")], check=True, capture_output=True)
    (folder / "keys" / "ui-oidc.secret").write_text(os.urandom(16).hex())
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return Deployment(folder, int(probe.getsockname()[1]))


def deploy(deployment: Deployment, note: Callable[[str], None]) -> None:
    """Apply every stack to an emulator, which runs until `tear_down`."""
    note("applying the stacks to the emulator")
    deployment.infra("up")


def tear_down(deployment: Deployment) -> None:
    """End the emulator, which forgets the deployment."""
    file = deployment.folder / "local" / "emulator.pid"
    if file.exists():
        os.kill(int(file.read_text()), 15)
        file.unlink()
