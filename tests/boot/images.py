"""Image repositories: a build's images in a registry on this machine, under the names that ECR gives them, and in the emulator's ECR.

The container engine is told where the ECR hosts' images are; the digests are those that the definitions name.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.boot.account import Account
from tests.boot.wires import command

IMAGES = ("control-plane", "edge-worker")


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
    """Return a build in which an image has another digest: its index is written without white space."""
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
    return (build.folder / "release.json").read_text().replace(build.digest(image), digest)


@dataclass(frozen=True)
class Engine:
    """The container engine, with the registries that it pulls from."""

    folder: Path
    registry: str

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


@contextmanager
def repositories(
    account: Account, build: Build, folder: Path, regions: list[str], prefix: str
) -> Iterator[Engine]:
    """Registry with the build's images in every region's repository; yields the engine that pulls from it."""
    number = account.client("sts").get_caller_identity()["Account"]
    with _registry(folder) as address:
        entries = []
        for region in regions:
            host = f"{number}.dkr.ecr.{region}.amazonaws.com"
            entries.append(
                f'[[registry]]\nprefix = "{host}"\nlocation = "{address}/{region}"\ninsecure = true\n'
            )
            push(account, build, address, region, prefix)
        (folder / "registries.conf").write_text("\n".join(entries))
        yield Engine(folder, address)


def push(account: Account, build: Build, address: str, region: str, prefix: str) -> None:
    """Push a build's images by digest to a region's repositories."""
    for image in IMAGES:
        source = f"dir:{build.folder / 'images' / image}"
        target = f"docker://{address}/{region}/{prefix}/{image}:{_tag(build, image)}"
        options = ("--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false")
        command("skopeo", "copy", *options, source, target)
        _put(account.client("ecr", region), f"{prefix}/{image}", build, image)


def _put(ecr: Any, repository: str, build: Build, image: str) -> None:
    """Tell the emulator's ECR that it has the image, as a push does; and replication, which makes the repositories of other regions."""
    with suppress(ecr.exceptions.RepositoryAlreadyExistsException):
        ecr.create_repository(repositoryName=repository)
    manifest, digest = build.manifest(image), build.digest(image)
    if ecr.batch_get_image(repositoryName=repository, imageIds=[{"imageDigest": digest}])["images"]:
        return
    ecr.put_image(
        repositoryName=repository,
        imageManifest=manifest,
        imageManifestMediaType=json.loads(manifest)["mediaType"],
        imageDigest=digest,
        imageTag=_tag(build, image),
    )


def _tag(build: Build, image: str) -> str:
    """Return an image's tag; tags of the repositories are not moved."""
    return f"boot-{build.digest(image).removeprefix('sha256:')[:12]}"


@contextmanager
def _registry(folder: Path) -> Iterator[str]:
    import socket
    import time

    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    settings = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": address},
    }
    (folder / "registry.yml").write_text(json.dumps(settings))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "registry.yml")], stdout=log, stderr=log
        )
    try:
        host, _, port = address.partition(":")
        for _ in range(100):
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(10)
