"""An image on a base laid out as upstream's: CPython in /usr/local, which dpkg does not know, with pip and setuptools."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.ci.tree import ROOT

from airbridge.ci.checkout import Checkout
from airbridge.ci.images import base as bases
from airbridge.ci.images import inventory, sbom
from airbridge.ci.images.base import Base
from airbridge.ci.images.build import Builder
from airbridge.ci.images.specs import EDGE_WORKER, MACHINES, Architecture
from airbridge.ci.images.wheelhouse import Target
from airbridge.ci.parity.built import _installed
from airbridge.ci.parity.facts import Facts
from airbridge.ci.tools import run

pytestmark = [pytest.mark.slow("make proof-pipelines"), pytest.mark.timeout(1200)]

#: What CPython's extension modules link to.
LIBRARIES = "ca-certificates,libbz2-1.0,libexpat1,libffi8,libgdbm6,liblzma5,libncursesw6,libreadline8,libsqlite3-0,libssl3,libuuid1,netbase,tzdata,zlib1g"
PREFIX = Path(sys.base_prefix)
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
MACHINE: Architecture = next(each for each, name in MACHINES.items() if name == platform.machine())


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    """Debian without Python, and this machine's CPython with pip and setuptools beside it."""
    if missing := [tool for tool in ("mmdebstrap", "buildah", "skopeo") if shutil.which(tool) is None]:
        pytest.skip(f"{', '.join(missing)} not installed: make images-tools")
    if Path("/usr") == PREFIX or 'VERSION_ID="12"' not in Path("/etc/os-release").read_text(encoding="utf-8"):
        pytest.skip("needs Debian 12 with a CPython of its own: another's links to other libraries")
    folder = tmp_path_factory.mktemp("upstream")
    archive = folder / "base.tar"
    environment = {"SOURCE_DATE_EPOCH": "0", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    run("mmdebstrap", "--variant=apt", f"--include={LIBRARIES}", bases.DEBIAN_SUITE, archive, env=environment)
    with tarfile.open(archive, "a") as packed:
        for path in (f"lib/python{MINOR}", f"bin/python{MINOR}", f"include/python{MINOR}"):
            packed.add(PREFIX / path, f"usr/local/{path}", filter=_slim)
        for library in PREFIX.glob("lib/libpython*.so*"):
            packed.add(library, f"usr/local/lib/{library.name}")
        for name in ("python3", "python"):
            link = tarfile.TarInfo(f"usr/local/bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, f"python{MINOR}"
            packed.addfile(link)
    reference = "localhost/airbridge-upstream-layout:test"
    bases.import_archive(run, archive, reference)
    # Upstream's image has run it: its interpreter finds libpython by the cache.
    container = run("buildah", "from", "--quiet", "--pull=never", reference).strip()
    run("buildah", "run", "--network=none", container, "--", "ldconfig")
    run("buildah", "commit", "--quiet", "--rm", container, reference)
    yield Base(reference, "upstream-layout@sha256:" + "0" * 64)
    subprocess.run(["buildah", "rmi", "--force", reference], check=False, capture_output=True)


def _slim(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out what upstream's image does: tests and bytecode; and of site-packages all but pip and setuptools."""
    parts = Path(member.name).parts
    if {"test", "tests", "idle_test", "__pycache__"} & set(parts) or member.name.endswith((".a", ".pyc")):
        return None
    if "site-packages" in parts:
        inside = parts[parts.index("site-packages") + 1 :]
        if inside and not inside[0].startswith(("pip", "setuptools")):
            return None
    member.uid = member.gid = 0
    return member


def test_upstream_layout_is_judged(upstream: Base, tmp_path: Path) -> None:
    """The base brings pip; the image has none, starts, names CPython in its SBOM, and parity finds nothing wrong in it."""
    container = run("buildah", "from", "--quiet", "--pull=never", upstream.reference).strip()
    try:
        mounted = Path(run("buildah", "mount", container).strip())
        brought = [each.name for each in (mounted / f"usr/local/lib/python{MINOR}/site-packages").iterdir()]
        assert any(each.startswith("pip") for each in brought), brought
    finally:
        run("buildah", "rm", container)
    checkout = Checkout(ROOT)
    uv = ROOT / ".tools/bin/uv"
    builder = Builder(checkout, checkout.revision(), upstream, MACHINE, uv, tmp_path / "work", lambda _: None)
    source = checkout.export(checkout.revision(), tmp_path / "source")
    built = builder._image(
        source, EDGE_WORKER, Target(platform.python_version(), MACHINE), tmp_path / "image"
    )
    found = inventory.take(built.layout)
    assert [] == [str(each) for each in _installed(Facts(source), "image", EDGE_WORKER, found)]
    assert {"pip", "setuptools"} & found.versions("pypi").keys() == set()
    assert found.versions("generic")[inventory.CPYTHON] == platform.python_version()
    bill = json.loads(built.sbom)
    [cpython] = [each for each in bill["components"] if each["name"] == inventory.CPYTHON]
    assert cpython["hashes"]
    assert not [
        path for path in built.layout.files if "/ensurepip/" in path or path.startswith("/usr/local/bin/pip")
    ]
    assert sbom.document(EDGE_WORKER.name, built.layout, found) == built.sbom
    tag = f"localhost/airbridge-{EDGE_WORKER.name}:{checkout.revision()[:12]}"
    container = run("buildah", "from", "--quiet", "--pull=never", tag).strip()
    try:
        assert "run" in run("buildah", "run", "--network=none", container, "--", "airbridge-worker", "--help")
    finally:
        run("buildah", "rm", container)
