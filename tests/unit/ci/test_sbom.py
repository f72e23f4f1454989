"""SBOMs: hashes of what is installed, edges between components, and what neither pip nor dpkg lists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.ci.small_build import write_image

from airbridge.ci.images import inventory, sbom
from airbridge.ci.images.layout import Layout

SITE = "opt/airbridge/lib/python3.12/site-packages"
DPKG = """Package: git
Status: install ok installed
Version: 1:2.39
Architecture: amd64
Depends: libc6 (>= 2.36), perl | perl-virtual, not-there

Package: perl-base
Status: install ok installed
Version: 5.36
Architecture: amd64
Provides: perl-virtual (= 5.36)
Pre-Depends: libc6

Package: libc6
Status: install ok installed
Version: 2.36
Architecture: amd64
Source: glibc
"""
FILES = {
    f"{SITE}/psycopg2_binary-2.9.dist-info/METADATA": "Name: psycopg2-binary\nVersion: 2.9\n",
    f"{SITE}/psycopg2_binary-2.9.dist-info/RECORD": "psycopg2/__init__.py,,\npsycopg2_binary.libs/libcrypto-1a.so.1.1,,\n",
    f"{SITE}/psycopg2/__init__.py": "code",
    f"{SITE}/psycopg2_binary.libs/libcrypto-1a.so.1.1": "\x7fELF OpenSSL 1.1.1w  11 Sep 2023",
    f"{SITE}/app-1.dist-info/METADATA": (
        'Name: app\nVersion: 1\nRequires-Dist: psycopg2_binary>=2\nRequires-Dist: web[fast]\nRequires-Dist: old; python_version < "3"\n'
        "Requires-Dist: absent\nRequires-Dist: not a requirement ???\n"
    ),
    f"{SITE}/web-1.dist-info/METADATA": (
        'Name: web\nVersion: 1\nRequires-Dist: loop; extra == "fast"\nRequires-Dist: docs; extra == "docs"\n'
    ),
    f"{SITE}/loop-1.dist-info/METADATA": "Name: loop\nVersion: 1\n",
    f"{SITE}/docs-1.dist-info/METADATA": "Name: docs\nVersion: 1\n",
    f"{SITE}/old-1.dist-info/METADATA": "Name: old\nVersion: 1\n",
    "var/lib/dpkg/status": DPKG,
    "var/lib/dpkg/info/git.list": "/.\n/usr/bin/git\n/usr/share/doc/git/left-out\n",
    "var/lib/dpkg/info/libc6:amd64.list": "/lib/libc.so.6\n",
    "usr/bin/git": "git",
    "usr/lib/libc.so.6": "libc",
    "etc/os-release": 'VERSION_ID="12"\n',
}
UPSTREAM = {
    "usr/local/lib/python3.12/os.py": "os",
    "usr/local/lib/python3.12/site-packages/pip-25.dist-info/METADATA": "Name: pip\nVersion: 25\n",
    "usr/local/include/python3.12/patchlevel.h": '#define PY_VERSION              "3.12.14"\n',
    "usr/local/bin/python3.12": "python",
}


def document(tmp_path: Path, files: dict[str, str]) -> tuple[Layout, dict[str, Any]]:
    """Return an image of these files, and its SBOM."""
    layout = write_image(tmp_path / "image", files, {})
    return layout, json.loads(sbom.document("edge-worker", layout, inventory.take(layout)))


def edges(content: dict[str, Any]) -> dict[str, set[str]]:
    """Return the graph by names without versions."""
    names = {each["bom-ref"]: each["name"] for each in content["components"]}
    names[content["metadata"]["component"]["bom-ref"]] = "image"
    return {names[each["ref"]]: {names[ref] for ref in each["dependsOn"]} for each in content["dependencies"]}


def test_bundled_openssl_is_listed(tmp_path: Path) -> None:
    """A wheel's own OpenSSL is a component with its version and hash, and the wheel depends on it."""
    _, content = document(tmp_path, FILES)
    [openssl] = [each for each in content["components"] if each["name"] == "openssl"]
    assert ("1.1.1w", "pkg:generic/openssl@1.1.1w") == (openssl["version"], openssl["purl"])
    assert {"openssl"} == edges(content)["psycopg2-binary"]


def test_components_have_hashes(tmp_path: Path) -> None:
    """A component's hash is that of the list that `sha256sum` makes of its files, wherever a merged /usr has them."""
    layout, content = document(tmp_path, FILES)
    found = {each["name"]: each for each in content["components"]}
    for name, path, text in (("git", "/usr/bin/git", "git"), ("libc6", "/usr/lib/libc.so.6", "libc")):
        line = f"{hashlib.sha256(text.encode()).hexdigest()}  {path}\n"
        assert [{"alg": "SHA-256", "content": hashlib.sha256(line.encode()).hexdigest()}] == found[name][
            "hashes"
        ]
    image = content["metadata"]["component"]
    assert [{"alg": "SHA-256", "content": layout.digest.removeprefix("sha256:")}] == image["hashes"]


def test_hash_changes_with_one_byte(tmp_path: Path) -> None:
    """An altered file of a package changes that package's hash and no other's."""
    _, before = document(tmp_path / "before", FILES)
    _, after = document(tmp_path / "after", FILES | {f"{SITE}/psycopg2/__init__.py": "c0de"})
    pairs = zip(before["components"], after["components"], strict=True)
    assert ["psycopg2-binary"] == [
        one["name"] for one, other in pairs if one.get("hashes") != other.get("hashes")
    ]


def test_graph_has_requirements(tmp_path: Path) -> None:
    """Edges follow markers, extras that somebody asks for, alternatives and virtual packages; the image has all components."""
    graph = edges(document(tmp_path, FILES)[1])
    assert {"psycopg2-binary", "web"} == graph["app"]
    assert {"loop"} == graph["web"]
    assert {"libc6", "perl-base"} == graph["git"]
    assert {"libc6"} == graph["perl-base"]
    assert set() == graph["libc6"]
    assert graph.keys() - {"image"} == graph["image"]


def test_cpython_outside_dpkg_is_listed(tmp_path: Path) -> None:
    """Upstream's interpreter in /usr/local is a component, and the distributions depend on it; Debian's is one of dpkg's."""
    _, content = document(tmp_path / "upstream", FILES | UPSTREAM)
    [cpython] = [each for each in content["components"] if each["name"] == "cpython"]
    assert ("3.12.14", "pkg:generic/cpython@3.12.14") == (cpython["version"], cpython["purl"])
    assert cpython["hashes"]
    assert "cpython" in edges(content)["app"]
    _, content = document(tmp_path / "debian", FILES)
    assert "cpython" not in {each["name"] for each in content["components"]}


@pytest.mark.parametrize("twice", [1, 2])
def test_document_is_reproducible(tmp_path: Path, twice: int) -> None:
    """The same image gives the same bytes."""
    layout = write_image(tmp_path / str(twice), FILES | UPSTREAM, {})
    assert sbom.document("a", layout, inventory.take(layout)) == sbom.document(
        "a", Layout(layout.folder), inventory.take(layout)
    )
