"""A registry on this machine, and a small image in the layout that a build leaves behind."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.unit.ci.small_build import write_build
from tests.unit.ci.tree import ROOT

from airbridge.ci.checkout import Checkout
from airbridge.ci.images.assemble import Output
from airbridge.ci.parity.facts import Facts
from airbridge.ci.release import manifest
from airbridge.ci.release.manifest import Manifest

NEEDED = ("docker-registry", "skopeo")


@pytest.fixture(scope="session")
def registry_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the first registry."""
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="session")
def registry_address(registry_folder: Path) -> Iterator[str]:
    """Debian's docker-registry, on a free port of loopback."""
    with serve_registry(registry_folder) as address:
        yield address


@contextmanager
def serve_registry(folder: Path) -> Iterator[str]:
    """Run a registry that keeps its blobs in `folder`; yields its address."""
    if missing := [tool for tool in NEEDED if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: make images-tools")
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
def registry_data(registry_folder: Path) -> Path:
    """Directory of the registry's blobs; the registry makes it with the first push."""
    return registry_folder / "data"


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


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """Build output with small images."""
    return write_build(Output(tmp_path / "dist"), Facts(Checkout(ROOT)), base="base@sha256:1")


@pytest.fixture
def released(output: Output) -> Manifest:
    """The output's manifest, signed."""
    return manifest.load(output.manifest).signed(Ed25519PrivateKey.generate())
