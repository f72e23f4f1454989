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
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.boot import tutorial
from tests.boot.account import Account
from tests.boot.images import IMAGES, Build

from airbridge.ci.release import keys, manifest
from airbridge.ci.release import previous as releases

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
NAME, HOME = "dev", "us-east-1"
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


@dataclass
class Deployment:
    """A deployment on an emulator: its folder, which has what `infra/` has, and the emulator's port."""

    folder: Path
    port: int
    emulator: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the emulator's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def infra(self) -> Path:
        """Return the directory in which the tutorial's commands run."""
        return self.folder / "infra"

    @property
    def keys(self) -> Path:
        """Return what `airbridge init` made."""
        return self.folder / "keys"

    @cached_property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """Return the stacks' outputs by stack, from the states in the bucket."""
        s3 = Account(self.url, HOME).client("s3")
        bucket = next(
            each["Name"]
            for each in s3.list_buckets()["Buckets"]
            if each["Name"].startswith(f"airbridge-{NAME}-state-")
        )
        keys = [
            each["Key"]
            for each in s3.list_objects_v2(Bucket=bucket)["Contents"]
            if each["Key"].endswith(".tfstate")
        ]
        states = {
            Path(key).stem: json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read()) for key in keys
        }
        return {
            stack: {name: each["value"] for name, each in state["outputs"].items()}
            for stack, state in states.items()
        }

    @property
    def plane(self) -> dict[str, Any]:
        """Return the outputs of the control plane."""
        return self.outputs["control-plane"]

    @property
    def regions(self) -> dict[str, dict[str, Any]]:
        """Return the outputs of the edge stacks, by region."""
        found = {
            name.removeprefix("edge-"): each
            for name, each in self.outputs.items()
            if name.startswith("edge-")
        }
        return dict(sorted(found.items()))

    @property
    def release_key(self) -> Path:
        """Return the private key that signs releases of this deployment."""
        return self.folder / "release.key"

    @property
    def client_secret(self) -> str:
        """Return the secret of the UI's client at the issuer."""
        return (self.keys / "ui-oidc.secret").read_text()

    @property
    def environ(self) -> dict[str, str]:
        """Return the environment in which the tutorial's commands reach the emulator; the stacks are unchanged."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return inherited | {
            "PATH": f"{INFRA}/.venv/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AIRBRIDGE_ENV": NAME,
            "KEYS": str(self.keys),
            "CLIENT_SECRET": "of-the-client",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": HOME,
            # An action that the emulator does not know is an error at once, not in ten minutes.
            "AWS_MAX_ATTEMPTS": "2",
            "AWS_EC2_METADATA_DISABLED": "true",
            "CDKTF_SKIP_PROVIDER_LOCK": "true",
            "CI": "true",
            "CHECKPOINT_DISABLE": "1",
        }


def text(build: Build, previous: Build | None = None) -> str:
    """Return the environment file: `local`, with sign-in, in another tier, and with the images of a build; a previous one's workers are admitted."""
    source = (INFRA / "environments" / "local.toml").read_text()
    source = source.replace('name = "local"', f'name = "{NAME}"').replace(
        'tier = "local"', 'tier = "development"'
    )
    for image in IMAGES:
        source = re.sub(rf'"{image}@sha256:[0-9a-f]{{64}}"', f'"{image}@{build.digest(image)}"', source)
    admitted = f'\nprevious_worker = "edge-worker@{previous.digest("edge-worker")}"' if previous else ""
    return source.replace("\n[images]", _PLANE + admitted, 1)


def prepare(folder: Path, build: Build, previous: Build | None = None) -> Deployment:
    """Lay out what the tutorial starts from: the repository's `infra/`, and an environment on a release of the build, which is signed."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        made = Deployment(folder, int(probe.getsockname()[1]))
    made.infra.mkdir()
    for name in (".venv", "cdktf.json", "node_modules", "package.json", "src"):
        (made.infra / name).symlink_to(INFRA / name)
    (made.infra / "environments").mkdir()
    trusted = made.folder / keys.FILE
    trusted.parent.mkdir()
    trusted.write_text(keys.create(made.release_key, "this deployment"))
    put_on(made, build, previous)
    return made


def put_on(made: Deployment, build: Build, previous: Build | None = None) -> None:
    """Put the environment on a build, signed with the deployment's key, as `airbridge-ci sign` and `promote` do: no other image is synthesised."""
    environments = made.infra / "environments"
    private = keys.private(made.release_key)
    (environments / f"{NAME}.release.json").write_text(_release(build).signed(private).text())
    if previous:
        signed = _release(previous).signed(private)
        (environments / f"{NAME}.previous.json").write_text(releases.text([signed]))
    (environments / f"{NAME}.toml").write_text(text(build, previous))


def _release(build: Build) -> manifest.Manifest:
    return manifest.load(build.folder / "release.json")


def apply(made: Deployment, *stacks: str) -> None:
    """Apply stacks again; RuntimeError with cdktf's last words."""
    done = subprocess.run(
        ["npx", "--no-install", "cdktf", "deploy", "--auto-approve", *stacks],
        cwd=made.infra,
        env=made.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"cdktf deploy {' '.join(stacks)}: {(done.stdout + done.stderr)[-4000:]}")


def deploy(deployment: Deployment, note: Callable[[str], None]) -> list[str]:
    """Start an emulator and follow the tutorial on it; return what the commands did not print."""
    command = [
        str(INFRA / ".venv/bin/python"),
        "-m",
        "airbridge.infra.emulator",
        "--port",
        str(deployment.port),
    ]
    with (deployment.folder / "emulator.log").open("wb") as log:
        deployment.emulator = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not _answers(deployment.url):
        if deployment.emulator.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"the emulator did not start: {(deployment.folder / 'emulator.log').read_text()[-2000:]}"
            )
        time.sleep(0.2)
    return tutorial.follow(deployment.infra, deployment.environ, note)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
    except OSError:
        return False
    return True


def tear_down(deployment: Deployment) -> None:
    """End the emulator, which forgets the deployment."""
    if deployment.emulator:
        deployment.emulator.terminate()
        deployment.emulator.wait(30)
