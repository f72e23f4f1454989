"""The environment that is deployed to be booted, and what its deployment on the emulator left.

It is the shape of a first deployment: sign-in by OpenID Connect, two regions, one copy of each service, images by digest of a build.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
import trustme
from tests.boot import tutorial
from tests.boot.account import Account
from tests.boot.images import IMAGES, Build, Registry
from tests.boot.network import REGIONS
from tests.boot.wires import command

from airbridge.ci.release import keys, manifest
from airbridge.ci.release import previous as releases
from airbridge.control_plane import samples

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
NAME, HOME = "dev", "us-east-1"
#: The account of dev in ci/inventory.toml.
ACCOUNT = "111111111111"
UI = "airflow.boot.test"
ISSUER = "https://login.boot.test"
_ANN = {"NAME": "Ann", "EMAIL": "ann@example.com"}
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
    """A deployment on an emulator: its folder, which has a clone of the repository, and the emulator's port."""

    folder: Path
    port: int
    certificate: str = f"arn:aws:acm:{HOME}:{ACCOUNT}:certificate/00000000-0000-4000-8000-000000000000"

    @property
    def url(self) -> str:
        """Return the emulator's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def checkout(self) -> Path:
        """Return the clone."""
        return self.folder / "airbridge"

    @property
    def infra(self) -> Path:
        """Return the directory in which the tutorial's commands run."""
        return self.checkout / "infra"

    @property
    def account(self) -> Account:
        """Return the account behind the emulator."""
        return Account(self.url, HOME)

    @property
    def keys(self) -> Path:
        """Return what `airbridge init` made."""
        return self.folder / "keys"

    @cached_property
    def outputs(self) -> dict[str, dict[str, Any]]:
        """Return the stacks' outputs by stack, from the states in the bucket."""
        s3 = self.account.client("s3")
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
        """Return the private key that the tutorial makes, and that signs releases of this deployment."""
        return self.folder / "keys-release.key"

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
            "USER": "ann",
            **{
                f"GIT_{role}_{what}": value
                for role in ("AUTHOR", "COMMITTER")
                for what, value in _ANN.items()
            },
            # skopeo's and git's settings of this machine are nothing to a deployment.
            "REGISTRY_AUTH_FILE": str(self.folder / "auth.json"),
            "GIT_CONFIG_GLOBAL": "/dev/null",
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


def text(made: Deployment, build: Build | None = None, previous: Build | None = None) -> str:
    """Return the environment file: `local`, with sign-in, in another tier, and with the images of a build; a previous one's workers are admitted."""
    source = (INFRA / "environments" / "local.toml").read_text()
    for old, new in {
        'name = "local"': f'name = "{NAME}"',
        'tier = "local"': 'tier = "development"',
        'account = "123456789012"': f'account = "{ACCOUNT}"',
        'deployment_environment = "local"': f'deployment_environment = "{NAME}"',
        'operator_cidrs = ["10.0.0.0/8"]': 'operator_cidrs = ["192.168.0.0/24"]',
        # This machine built the images.
        'instance_types = ["m7g.large", "m6g.large"]': 'instance_types = ["m7i.large", "m6i.large"]',
    }.items():
        if old not in source:
            raise RuntimeError(f"infra/environments/local.toml has no {old}")
        source = source.replace(old, new)
    source = re.sub(r'certificate_arn = "[^"]*"', f'certificate_arn = "{made.certificate}"', source)
    for image in IMAGES if build else ():
        assert build
        source = re.sub(rf'"{image}@sha256:[0-9a-f]{{64}}"', f'"{image}@{build.digest(image)}"', source)
    admitted = f'\nprevious_worker = "edge-worker@{previous.digest("edge-worker")}"' if previous else ""
    return source.replace("\n[images]", _PLANE + admitted, 1)


def prepare(folder: Path, build: Build, earlier: Build | None = None) -> Deployment:
    """Lay out what the tutorial starts from: a clone of the repository, as it stands here, with what `make setup images` left.

    With an `earlier` build the environment is on its release, as before a promotion; it is signed with a key of its own.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        made = Deployment(folder, int(probe.getsockname()[1]))
    _clone(made.checkout)
    for name in (".venv", "node_modules"):
        (made.infra / name).symlink_to(INFRA / name)
    shutil.copytree(build.folder, made.checkout / "dist", copy_function=os.symlink)
    (made.checkout / "dist" / "release.json").unlink()
    shutil.copyfile(build.folder / "release.json", made.checkout / "dist" / "release.json")
    (made.infra / "environments" / f"{NAME}.toml").write_text(text(made))
    _admit(made.checkout / "ci" / "inventory.toml", build)
    if earlier:
        key = folder / "earlier.key"
        trusted = made.checkout / keys.FILE
        trusted.write_text(trusted.read_text() + keys.create(key, "earlier releases"))
        put_on(made, earlier, key=key)
        commit(made.checkout, "The release before")
    return made


def _admit(inventory: Path, build: Build) -> None:
    """Let development have this machine's images: for its architecture alone, on Debian's base, where it cannot pull the other."""
    base = _release(build).release.base.partition("@")[0]
    before, rest = inventory.read_text().split("[policy.development]\n")
    own, other = rest.split("\n\n", 1)
    own = re.sub(r"bases = .*", f'bases = ["{base}@sha256:"]', own)
    own = own.replace("every_architecture = true", "every_architecture = false")
    inventory.write_text(f"{before}[policy.development]\n{own}\n\n{other}")


def _clone(target: Path) -> None:
    """Clone the repository, with what is not committed yet."""
    command("git", "clone", "--quiet", str(ROOT), str(target))
    changed = command(
        "git", "-C", str(ROOT), "ls-files", "-z", "--modified", "--others", "--exclude-standard"
    )
    for name in filter(None, changed.split("\0")):
        (target / name).unlink(missing_ok=True)
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    commit(target, "As it stands")


def commit(checkout: Path, subject: str) -> None:
    """Commit everything in a clone."""
    who = [word for what, value in _ANN.items() for word in ("-c", f"user.{what.lower()}={value}")]
    command("git", "-C", str(checkout), "add", "--all")
    command("git", "-C", str(checkout), *who, "commit", "--quiet", "--allow-empty", "--message", subject)


def put_on(made: Deployment, build: Build, previous: Build | None = None, *, key: Path | None = None) -> None:
    """Put the environment on a build, signed with the deployment's key, as `airbridge-ci sign` and `promote` do: no other image is synthesised."""
    environments = made.infra / "environments"
    private = keys.private(key or made.release_key)
    (environments / f"{NAME}.release.json").write_text(_release(build).signed(private).text())
    if previous:
        signed = _release(previous).signed(private)
        (environments / f"{NAME}.previous.json").write_text(releases.text([signed]))
    (environments / f"{NAME}.toml").write_text(text(made, build, previous))


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


@contextmanager
def emulator(made: Deployment) -> Iterator[None]:
    """The emulator, with what people bring to an account: the UI's certificate and the buckets of their data."""
    command_line = [
        str(INFRA / ".venv/bin/python"), "-m", "airbridge.infra.emulator", "--port", str(made.port)
    ]  # fmt: skip
    log = made.folder / "emulator.log"
    with log.open("wb") as file:
        environ = os.environ | {"MOTO_ACCOUNT_ID": ACCOUNT}
        process = subprocess.Popen(command_line, stdout=file, stderr=file, env=environ)
    try:
        deadline = time.monotonic() + 120
        while not _answers(made.url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the emulator did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        _bring(made)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
    except OSError:
        return False
    return True


def _bring(made: Deployment) -> None:
    issued = trustme.CA().issue_cert(UI, common_name=UI)
    imported = made.account.client("acm").import_certificate(
        Certificate=issued.cert_chain_pems[0].bytes(), PrivateKey=issued.private_key_pem.bytes()
    )
    file = made.infra / "environments" / f"{NAME}.toml"
    before, made.certificate = made.certificate, str(imported["CertificateArn"])
    file.write_text(file.read_text().replace(before, made.certificate))
    for data in samples.data_objects():
        place = (
            {} if data.region == HOME else {"CreateBucketConfiguration": {"LocationConstraint": data.region}}
        )
        with suppress(made.account.client("s3").exceptions.BucketAlreadyOwnedByYou):
            made.account.client("s3", data.region).create_bucket(
                Bucket=f"airbridge-local-{data.region}-data", **place
            )


def registry_host(made: Deployment) -> str:
    """Return the name of ECR's registry in the home region."""
    number = made.account.client("sts").get_caller_identity()["Account"]
    return f"{number}.dkr.ecr.{HOME}.amazonaws.com"


def terminal(made: Deployment, pushed: Registry, note: Callable[[str], None]) -> tutorial.Terminal:
    """Return the terminal in which the tutorial is followed; what is pushed in it is in ECR, in every region."""
    trusted = made.folder / "trusted-registry.pem"
    trusted.write_text(Path(certifi.where()).read_text() + pushed.authority.cert_pem.bytes().decode())
    hosts = {
        registry_host(made): pushed.HOST,
        str(urlsplit(ISSUER).hostname): "127.0.0.1",
    }
    environ = made.environ | {"SSL_CERT_FILE": str(trusted)}
    files = made.folder / "terminal"
    files.mkdir()
    return tutorial.Terminal(
        made.infra, environ, files, note, hosts, lambda: pushed.replicate(made.account, REGIONS)
    )
