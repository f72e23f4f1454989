"""Parity of a build's output: what is really inside the images, against lock, manifest, labels and SBOM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ci.small_build import REVISION, SITE, versions_of, write_build
from tests.unit.ci.tree import Tree, digest

from airbridge.ci.checkout import Checkout
from airbridge.ci.images.assemble import Output
from airbridge.ci.images.base import pinned
from airbridge.ci.parity import built
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import as_text


@pytest.fixture
def facts(tree: Tree) -> Facts:
    """The tree's facts; its checked-out commit is the build's."""
    return Facts(Checkout(tree.root, lambda *_, **__: REVISION))


def make(facts: Facts, folder: Path, **changes: Any) -> Output:
    """A build of the tree, with `changes`."""
    return write_build(
        Output(folder / "dist"), facts, base=changes.pop("base", pinned(facts.checkout).name), **changes
    )


def metadata(name: str, version: str) -> dict[str, str]:
    """An installed distribution."""
    return {f"{SITE}/{name}.dist-info/METADATA": f"Name: {name}\nVersion: {version}\n"}


def test_matching_build_has_no_findings(facts: Facts, tmp_path: Path) -> None:
    """A build of this commit gives no finding."""
    assert list(built.check(facts, make(facts, tmp_path))) == []


@pytest.mark.parametrize(
    ("changes", "check", "says"),
    [
        ({"extra": {"edge-worker": metadata("structlog", "24.1.0")}}, "image-package", "structlog 24.1.0"),
        ({"extra": {"edge-worker": metadata("left-pad", "1.0")}}, "image-package", "no such package"),
        (
            {"extra": {"edge-worker": metadata("psycopg2-binary", "2.9.10")}},
            "image-package",
            "an edge host must not have it",
        ),
        (
            {"extra": {"edge-worker": metadata("airbridge-control-plane", "0.1.0")}},
            "image-package",
            "an edge host must not",
        ),
        ({"user": ""}, "image-user", "runs as root"),
        ({"labels": {"io.airbridge.airflow": "2.11.0"}}, "image-label", "io.airbridge.airflow is 2.11.0"),
        ({"labels": {"org.opencontainers.image.version": "0.0.9"}}, "image-label", "version is 0.0.9"),
        (
            {"labels": {"org.opencontainers.image.source": "https://example.com"}},
            "image-label",
            "source is https",
        ),
        ({"labels": {"org.opencontainers.image.title": "nginx"}}, "image-label", "title is nginx"),
        ({"base": "python:3.12-slim-bookworm@" + digest(8)}, "build-base", "base is python:3.12"),
        ({"revision": "d" * 40}, "build-revision", "is a build of dddd"),
    ],
)
def test_deviating_build_is_found(
    facts: Facts, tmp_path: Path, changes: dict[str, Any], check: str, says: str
) -> None:
    """Findings: an unlocked package, another version or platform; another user, label, base or commit."""
    found = list(built.check(facts, make(facts, tmp_path, **changes)))
    assert check in {finding.check for finding in found}
    assert says in as_text(found)


def test_manifest_with_other_versions_is_found(facts: Facts, tmp_path: Path) -> None:
    """The manifest must name the lock's versions."""
    other = versions_of(facts).model_copy(update={"airflow": "3.0.5", "protocol": 9})
    found = as_text(list(built.check(facts, make(facts, tmp_path, versions=other))))
    assert "airflow is 3.0.5" in found
    assert "protocol is 9" in found


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda output: _flip(output.image("edge-worker") / "manifest.json"), "image-digest"),
        (
            lambda output: _flip(max(output.image("edge-worker").glob("*"), key=lambda p: p.stat().st_size)),
            "image-digest",
        ),
        (lambda output: _flip(output.sbom("edge-worker", "amd64")), "sbom"),
        (lambda output: output.sbom("edge-worker", "amd64").unlink(), "sbom"),
        (lambda output: output.manifest.write_text("{}"), "release-file"),
        (lambda output: output.manifest.unlink(), "release-file"),
    ],
    ids=["list", "layer", "sbom", "no-sbom", "no-manifest-inside", "no-manifest"],
)
def test_an_altered_output_is_found(
    facts: Facts, tmp_path: Path, spoil: Callable[[Output], None], check: str
) -> None:
    """A flipped byte anywhere in a build's output is found."""
    output = make(facts, tmp_path)
    spoil(output)
    assert check in {finding.check for finding in built.check(facts, output)}
