"""Debian packages of the images: which image has which, and where their files come from."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest
from tests.unit.ci.tree import ROOT

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images import debs
from airbridge.ci.images.debs import Deb
from airbridge.ci.images.specs import ARCHITECTURES

CONTENT = b"a package"
PACKAGE = Deb(
    name="demo",
    version="1:2.0",
    architecture="all",
    path="debian-security/pool/updates/main/d/demo/demo_2.0_all.deb",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)
MIRRORS = (
    "http://mirror.test/{archive}/{path}",
    "http://snapshot.test/archive/{archive}/20261129T000000Z/{path}",
)


def client(answers: dict[str, bytes], asked: list[str]) -> httpx.Client:
    """Client of servers that have these files, and of no others; `asked` gets every URL."""

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        content = answers.get(str(request.url))
        return httpx.Response(404) if content is None else httpx.Response(200, content=content)

    return httpx.Client(transport=httpx.MockTransport(handle))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_git_is_in_control_plane_only(architecture: str) -> None:
    """The `git` bundle source runs git in the dag-processor; a worker fetches snapshots and needs none."""
    control_plane = {deb.name for deb in debs.listed(Checkout(ROOT), architecture, "control-plane")}  # type: ignore[arg-type]
    worker = {deb.name for deb in debs.listed(Checkout(ROOT), architecture, "edge-worker")}  # type: ignore[arg-type]
    assert {"git", "libcurl3-gnutls", "git-man", "tini"} <= control_plane
    assert worker == {"tini"}


def test_a_superseded_file_comes_from_the_snapshot(tmp_path: Path) -> None:
    """Debian deletes a file from its pool at the next update; the archive of that day still has it."""
    asked: list[str] = []
    old = "http://snapshot.test/archive/debian-security/20261129T000000Z/pool/updates/main/d/demo/demo_2.0_all.deb"
    debs.fetch((PACKAGE,), tmp_path, client({old: CONTENT}, asked), MIRRORS)
    assert asked == ["http://mirror.test/debian-security/pool/updates/main/d/demo/demo_2.0_all.deb", old]
    assert (tmp_path / "demo_2.0_all.deb").read_bytes() == CONTENT


def test_a_file_that_no_mirror_has_is_named(tmp_path: Path) -> None:
    """The error names the package, and every address that was tried."""
    with pytest.raises(BuildError, match=r"demo 1:2\.0 is gone.*mirror\.test.*404.*snapshot\.test.*404"):
        debs.fetch((PACKAGE,), tmp_path, client({}, []), MIRRORS)


def test_an_altered_file_is_refused(tmp_path: Path) -> None:
    """Another content under the right name is not used, from whichever mirror."""
    url = "http://mirror.test/debian-security/pool/updates/main/d/demo/demo_2.0_all.deb"
    with pytest.raises(BuildError, match=r"demo 1:2\.0: .* has the SHA-256"):
        debs.fetch((PACKAGE,), tmp_path, client({url: CONTENT + b"!"}, []), MIRRORS)
    assert not list(tmp_path.glob("*.deb"))


def test_base_is_exactly_its_packages() -> None:
    """The Debian base is made of named files; the packages that an image adds stand beside it in a version of their own."""
    for architecture in ARCHITECTURES:
        found = debs.of_base(Checkout(ROOT), architecture)
        names = [deb.name for deb in found]
        assert len(set(names)) == len(names) > 100
        assert {"apt", "base-files", "python3-minimal", "ca-certificates"} <= set(names)
