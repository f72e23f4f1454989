"""A registry on this machine, and a small image in the layout that a build leaves behind."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.unit.ci.tree import COMMITTED

from airbridge.ci.images import inventory, sbom
from airbridge.ci.images.assemble import Output, PartRecord, assemble
from airbridge.ci.images.layout import VERSION_LINE, Layout, digest_of
from airbridge.ci.release.manifest import Manifest, ReleaseVersions

NEEDED = ("docker-registry", "skopeo")


@pytest.fixture(scope="session")
def registry_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry, on a free port of loopback."""
    if missing := [tool for tool in NEEDED if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: make images-tools")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(json.dumps(config), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        _await(f"http://127.0.0.1:{port}/v2/")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def registry_data(registry_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the registry keeps its blobs."""
    return next(tmp_path_factory.getbasetemp().glob("registry*/data"), tmp_path_factory.getbasetemp())


def _await(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def write_image(folder: Path, name: str, files: dict[str, str]) -> Layout:
    """A one-layer image as skopeo would leave it."""
    folder.mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, text in sorted(files.items()):
            member = tarfile.TarInfo(path)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    layer = gzip.compress(packed.getvalue(), mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"User": "10001:10001", "Labels": {"org.opencontainers.image.title": name}},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(packed.getvalue())]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": digest_of(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "size": len(layer),
                "digest": digest_of(layer),
            }
        ],
    }
    (folder / "version").write_text(VERSION_LINE, encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    for blob in (layer, config):
        (folder / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
    return Layout(folder)


def small_files(name: str) -> dict[str, str]:
    """What is in the small image: one Python distribution, one Debian package."""
    return {
        "opt/airbridge/lib/python3.12/site-packages/demo-1.0.dist-info/METADATA": f"Name: Demo_{name}\nVersion: 1.0\n",
        "var/lib/dpkg/status": "Package: tini\nStatus: install ok installed\nVersion: 0.19.0-1\nArchitecture: amd64\n",
        "etc/os-release": 'VERSION_ID="12"\n',
    }


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """What a build leaves behind, with small images in it."""
    made = Output(tmp_path / "dist")
    versions = ReleaseVersions(
        airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.12.14", protocol=1
    )
    record = PartRecord(
        architecture="amd64",
        revision="c" * 40,
        committed_at=COMMITTED,
        base="base@sha256:1",
        versions=versions,
    )
    for name in ("control-plane", "edge-worker"):
        layout = write_image(made.part("amd64") / name, name, small_files(name))
        bill = sbom.document(name, layout, inventory.take(layout))
        (made.part("amd64") / f"{name}.cdx.json").write_bytes(bill)
    (made.part("amd64") / "part.json").write_text(record.model_dump_json(), encoding="utf-8")
    return made


@pytest.fixture
def released(output: Output) -> Manifest:
    """The output's manifest, signed."""
    return assemble(output).signed(Ed25519PrivateKey.generate())
