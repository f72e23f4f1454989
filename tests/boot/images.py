"""Image repositories: a build's images in a registry on this machine, under the names that ECR gives them, and in the emulator's ECR.

The container engine is told where the ECR hosts' images are; the digests are those that the definitions name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import trustme
from tests.boot.account import Account
from tests.boot.wires import command

IMAGES = ("control-plane", "edge-worker")
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True)
class Build:
    """What `airbridge-ci build` left in a folder."""

    folder: Path

    def digest(self, image: str) -> str:
        """Return an image's digest."""
        release = json.loads((self.folder / "release.json").read_text())["release"]
        release = json.loads(release) if isinstance(release, str) else release
        return str(release["images"][image]["digest"])

    def manifest(self, image: str) -> str:
        """Return an image's manifest, whose digest is the image's."""
        return (self.folder / "images" / image / "manifest.json").read_text()


def rebuilt(build: Build, image: str, folder: Path) -> Build:
    """Return an earlier build, of the commit before, in which an image has another digest: its index is written without white space."""
    text = json.dumps(json.loads(build.manifest(image)), separators=(",", ":"))
    shutil.copytree(build.folder.resolve(), folder, copy_function=os.symlink)
    for file, content in (
        (folder / "images" / image / "manifest.json", text),
        (folder / "release.json", _moved(build, image, text)),
    ):
        file.unlink()
        file.write_text(content)
    return Build(folder)


def _moved(build: Build, image: str, manifest: str) -> str:
    digest = f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"
    text = (build.folder / "release.json").read_text().replace(build.digest(image), digest)
    revision, at = json.loads(text)["release"]["revision"], json.loads(text)["release"]["committed_at"]
    here = ("git", "-C", str(Path(__file__).parent), "log", "-1", f"{revision}~1")
    before, seconds = command(*here, "--format=%H %ct").split()
    before_at = datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return text.replace(revision, before).replace(at, before_at)


@dataclass(frozen=True)
class Engine:
    """The container engine, with the registries that it pulls from."""

    folder: Path

    def run(self, *words: str, env: dict[str, str] | None = None) -> str:
        """Run podman and return what it prints; RuntimeError with its error."""
        done = self.attempt(*words, env=env)
        if done.returncode:
            raise RuntimeError(f"podman {' '.join(words)[:200]}: {done.stderr.strip()[-3000:]}")
        return done.stdout.strip()

    def attempt(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run podman, which may fail."""
        environ = {**os.environ, **self.variables, **(env or {})}
        return subprocess.run(["podman", *words], capture_output=True, text=True, check=False, env=environ)

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment of the engine."""
        return {"CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf")}

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        """Return what the engine knows of a container, image or volume."""
        found: list[dict[str, Any]] = json.loads(self.run(kind, "inspect", name))
        return found[0]


@dataclass(frozen=True)
class Registry:
    """The registry behind ECR's names: TLS under the home region's name, and the same content in every region, as replication leaves it."""

    folder: Path
    authority: trustme.CA = field(default_factory=trustme.CA)

    #: An address of loopback that nothing else has; Docker's references name no port, so it is 443.
    HOST = "127.0.77.1"

    @property
    def address(self) -> str:
        """Return where it listens."""
        return f"{self.HOST}:443"

    def client(self) -> httpx.Client:
        """Return a client of it."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return httpx.Client(base_url=f"https://{self.address}", verify=context, trust_env=False)

    def replicate(self, account: Account, regions: Collection[str]) -> None:
        """Tell the emulator's ECR, in every region, of the images that were pushed."""
        with self.client() as client:
            for repository in client.get("/v2/_catalog").json()["repositories"]:
                accept = {"Accept": ", ".join(_INDEXES)}
                for tag in client.get(f"/v2/{repository}/tags/list").json()["tags"] or ():
                    manifest = client.get(f"/v2/{repository}/manifests/{tag}", headers=accept)
                    manifest.raise_for_status()
                    for region in regions:
                        _put(account.client("ecr", region), repository, manifest.text, tag)

    def engine(self, number: str, regions: Collection[str]) -> Engine:
        """Return the container engine that pulls from it under ECR's names."""
        entries = [
            f'[[registry]]\nprefix = "{number}.dkr.ecr.{region}.amazonaws.com"\nlocation = "{self.address}"\ninsecure = true\n'
            for region in regions
        ]
        (self.folder / "registries.conf").write_text("\n".join(entries))
        return Engine(self.folder)

    def push(self, build: Build, image: str, prefix: str) -> None:
        """Push an image of a build."""
        target = f"docker://{self.address}/{prefix}/{image}:{build.digest(image)[7:19]}"
        options = ("--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false")
        command("skopeo", "copy", *options, f"dir:{build.folder / 'images' / image}", target)


def _put(ecr: Any, repository: str, manifest: str, tag: str) -> None:
    """Tell ECR of an image, as a push does; replication makes the repositories of other regions."""
    with suppress(ecr.exceptions.RepositoryAlreadyExistsException):
        ecr.create_repository(repositoryName=repository)
    digest = f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"
    if ecr.batch_get_image(repositoryName=repository, imageIds=[{"imageDigest": digest}])["images"]:
        return
    ecr.put_image(
        repositoryName=repository,
        imageManifest=manifest,
        imageManifestMediaType=json.loads(manifest)["mediaType"],
        imageDigest=digest,
        imageTag=tag,
    )


@contextmanager
def registry(folder: Path, host: str) -> Iterator[Registry]:
    """Debian's docker-registry under ECR's name, for the length of a block."""
    made = Registry(folder)
    served = made.authority.issue_cert(host, Registry.HOST)
    certificate, key = folder / "registry.crt", folder / "registry.key"
    served.private_key_pem.write_to_path(key)
    for number, part in enumerate(served.cert_chain_pems):
        part.write_to_path(certificate, append=number > 0)
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": made.address, "tls": {"certificate": str(certificate), "key": str(key)}},
    }
    (folder / "registry.yml").write_text(json.dumps(settings))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "registry.yml")], stdout=log, stderr=log
        )
    try:
        _await(made, process)
        yield made
    finally:
        process.terminate()
        process.wait(10)


def _await(made: Registry, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            break
        with suppress(httpx.HTTPError), made.client() as client:
            client.get("/v2/")
            return
        time.sleep(0.1)
    raise RuntimeError(f"the registry did not start: {(made.folder / 'registry.log').read_text()[-2000:]}")
