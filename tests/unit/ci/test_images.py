"""Images as files: what their layers hold, their SBOMs, their lists, and what is taken out of their configuration."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from tests.unit.ci.tree import Tree, start_history

from airbridge.ci.cli import images as commands
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images import base, inventory, sbom
from airbridge.ci.images.layout import Layout, digest_of, settle, write_list
from airbridge.ci.images.wheelhouse import Target

SITE = "opt/airbridge/lib/python3.12/site-packages"
DPKG = (
    "Package: tini\nStatus: install ok installed\nVersion: 0.19.0-1+b3\nArchitecture: amd64\nSource: tini (0.19.0-1)\n\n"
    "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n"
)


def layer(files: dict[str, str]) -> bytes:
    """A compressed layer."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path, text in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


def image(folder: Path, *layers: dict[str, str], **config: object) -> Layout:
    """An image of these layers."""
    folder.mkdir()
    blobs = [layer(files) for files in layers]
    configuration = json.dumps({"architecture": "amd64", "config": {"Labels": {}}} | config).encode()
    manifest = {
        "config": {"digest": digest_of(configuration), "size": len(configuration)},
        "layers": [{"digest": digest_of(blob), "size": len(blob)} for blob in blobs],
    }
    for blob in (*blobs, configuration):
        (folder / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Layout(folder)


LOWER = {
    f"{SITE}/Demo_App-1.0.dist-info/METADATA": "Name: Demo.App\nVersion: 1.0\nLicense: MIT\n",
    f"{SITE}/old-2.dist-info/METADATA": "Name: old\nVersion: 2\n",
    "var/lib/dpkg/status": DPKG,
    "etc/os-release": 'VERSION_ID="12"\n',
    "cache/a": "x",
    "cache/b": "y",
}
UPPER = {
    f"{SITE}/.wh.old-2.dist-info": "",
    "cache/.wh..wh..opq": "",
    "cache/c": "z",
}


def test_layers_apply_in_order(tmp_path: Path) -> None:
    """A file, a folder and an opaque folder that an upper layer deletes are gone."""
    files = image(tmp_path / "i", LOWER, UPPER).files
    assert "/cache/c" in files
    assert not {"/cache/a", "/cache/b", f"/{SITE}/old-2.dist-info/METADATA"} & set(files)


def test_the_inventory_is_what_is_installed(tmp_path: Path) -> None:
    """Distributions by their normalised names, Debian packages that are installed and not merely known."""
    found = inventory.take(image(tmp_path / "i", LOWER, UPPER))
    assert found.versions("pypi") == {"demo-app": "1.0"}
    assert found.versions("deb") == {"tini": "0.19.0-1+b3"}
    assert found.system == "12"
    assert {package.source for package in found.packages if package.kind == "deb"} == {"tini"}


def test_sbom_is_deterministic(tmp_path: Path) -> None:
    """CycloneDX of the inventory, with package URLs, and no time or random number in it."""
    made = image(tmp_path / "i", LOWER, UPPER)
    bill = sbom.document("demo", made, inventory.take(made))
    assert bill == sbom.document("demo", made, inventory.take(made))
    assert sbom.packages(bill) == {("pypi", "demo-app", "1.0"), ("deb", "tini", "0.19.0-1+b3")}
    purls = [part["purl"] for part in json.loads(bill)["components"]]
    assert purls == [
        "pkg:deb/debian/tini@0.19.0-1%2Bb3?arch=amd64&distro=debian-12&upstream=tini",
        "pkg:pypi/demo-app@1.0",
    ]
    assert json.loads(bill)["metadata"]["component"]["version"] == made.digest


def test_blob_with_wrong_digest_is_refused(tmp_path: Path) -> None:
    """Reading a configuration checks its digest."""
    made = image(tmp_path / "i", LOWER)
    path = made.blob_path(made.config_digest)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BuildError, match="the name says"):
        _ = made.config


def test_settling_removes_container_name(tmp_path: Path) -> None:
    """Two builds differ only in the container's name; with the name removed they are one image."""
    first = image(tmp_path / "a", LOWER, container="abc", config={"Hostname": "abc", "User": "10001"})
    second = image(tmp_path / "b", LOWER, container="def", config={"Hostname": "def", "User": "10001"})
    assert first.digest != second.digest
    assert settle(first.folder).digest == settle(second.folder).digest
    assert Layout(first.folder).config["config"]["User"] == "10001"
    assert len(list(first.folder.iterdir())) == 3


def test_image_list_is_order_independent(tmp_path: Path) -> None:
    """In whatever order the architectures come, the list is the same, and holds every blob."""
    amd, arm = image(tmp_path / "x", LOWER), image(tmp_path / "y", UPPER, architecture="arm64")
    digest = write_list(tmp_path / "one", {"amd64": amd, "arm64": arm})
    assert digest == write_list(tmp_path / "two", {"arm64": arm, "amd64": amd})
    listed = json.loads((tmp_path / "one" / "manifest.json").read_text())["manifests"]
    assert [(entry["platform"]["architecture"], entry["digest"]) for entry in listed] == [
        ("amd64", amd.digest),
        ("arm64", arm.digest),
    ]
    assert (tmp_path / "one" / amd.config_digest.removeprefix("sha256:")).exists()


def test_wheels_match_target_platform() -> None:
    """pip receives the target's interpreter, ABIs and platforms, not this machine's."""
    options = Target("3.12.14", "arm64").pip_options()
    assert "3.12.14" in options
    assert "cp312" in options
    assert "manylinux_2_17_aarch64" in options
    assert not [option for option in options if "x86_64" in option]


def test_host_package_is_for_the_images_python(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package for hosts has wheels for the images' Python, unless another is named: bundles' packages are built for that one."""
    built: list[str] = []

    def build(_source: object, _revision: str, target: Target, *_: object) -> None:
        built.append(target.minor)
        raise BuildError("far enough")

    monkeypatch.setattr(commands.packages, "build", build)
    monkeypatch.setattr(commands, "_uv", lambda _checkout: Path("uv"))
    tree.edit(base.PIN_FILE, r"python:3\.\d+-", "python:3.99-")
    start_history(tree, "First")
    with pytest.raises(BuildError, match="far enough"):
        commands.host_package(root=tree.root)
    with pytest.raises(BuildError, match="far enough"):
        commands.host_package(root=tree.root, python="3.11")
    assert built == ["3.99", "3.11"]
    tree.edit(base.PIN_FILE, r"python:3\.99-", "python:")
    with pytest.raises(BuildError, match="must begin with Python's version"):
        base.python(tree.checkout)
