"""Images in a real registry: pushed and pulled by digest, and refused when a single byte is not as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest

from airbridge.ci.exceptions import BuildError, RegistryError
from airbridge.ci.images import sbom
from airbridge.ci.images.assemble import Output
from airbridge.ci.images.layout import digest_of
from airbridge.ci.publish import Publisher, require_published
from airbridge.ci.registry import Registry, tag_of
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.release.signers import Signer
from airbridge.ci.tools import run


@pytest.fixture
def registry(registry_address: str, request: pytest.FixtureRequest) -> Registry:
    """A corner of the registry for one test."""
    return Registry(f"{registry_address}/t{abs(hash(request.node.name)):x}", run, plain=True)


@pytest.fixture
def published(registry: Registry, output: Output, released: Manifest) -> Manifest:
    """The release, in the registry."""
    Publisher(registry, output, lambda _: None).publish(released)
    return released


def blob_file(data: Path, digest: str) -> Path:
    """Return the path of a blob in the registry's storage."""
    name = digest.removeprefix("sha256:")
    return data / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


def test_pulled_release_equals_pushed(
    registry: Registry, published: Manifest, output: Output, tmp_path: Path
) -> None:
    """Every file of the image comes back with the same bytes."""
    require_published(registry, published, None)
    for name, image in published.release.images.items():
        registry.pull(name, image.digest, tmp_path / name)
        there = {file.name: digest_of(file.read_bytes()) for file in output.image(name).iterdir()}
        assert there == {file.name: digest_of(file.read_bytes()) for file in (tmp_path / name).iterdir()}


def test_sbom_is_tagged_beside_image(
    registry: Registry, published: Manifest, output: Output, tmp_path: Path
) -> None:
    """The SBOM has the tag under which cosign and others look for it; it names the image as its subject."""
    part = published.release.images["edge-worker"].parts["amd64"]
    tag = registry.sbom_tag(part.digest)
    run(
        "skopeo",
        "copy",
        "--quiet",
        "--src-tls-verify=false",
        f"docker://{registry.address}/edge-worker:{tag}",
        f"dir:{tmp_path / 's'}",
    )
    artifact = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert artifact["artifactType"] == sbom.MEDIA_TYPE
    assert artifact["subject"]["digest"] == part.digest
    bill = (tmp_path / "s" / artifact["layers"][0]["digest"].removeprefix("sha256:")).read_bytes()
    assert digest_of(bill) == part.sbom
    assert bill == output.sbom("edge-worker", "amd64").read_bytes()


def test_publishing_twice_changes_nothing(registry: Registry, published: Manifest, output: Output) -> None:
    """A pipeline that is run again is harmless."""
    again = Publisher(registry, output, lambda _: None).publish(published)
    assert {item.reference for item in again} == {
        registry.reference(name, image.digest) for name, image in published.release.images.items()
    }


def test_an_unknown_digest_is_refused(registry: Registry, published: Manifest) -> None:
    """A digest that was never pushed is not found."""
    with pytest.raises(RegistryError, match="edge-worker@sha256:0000"):
        registry.manifest("edge-worker", "sha256:" + "0" * 64)


@pytest.mark.parametrize("part", ["layer", "config", "manifest", "list"])
def test_altered_blob_is_refused(
    registry: Registry, registry_data: Path, published: Manifest, output: Output, tmp_path: Path, part: str
) -> None:
    """Whichever blob is altered where it is stored, the pull fails."""
    image = published.release.images["edge-worker"]
    inner = json.loads(
        (output.image("edge-worker") / f"{image.parts['amd64'].digest[7:]}.manifest.json").read_text()
    )
    digest = {
        "layer": inner["layers"][0]["digest"],
        "config": inner["config"]["digest"],
        "manifest": image.parts["amd64"].digest,
        "list": image.digest,
    }[part]
    stored = blob_file(registry_data, digest)
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    original = stored.read_bytes()
    try:
        stored.write_bytes(content)
        with pytest.raises(RegistryError):
            registry.pull("edge-worker", image.digest, tmp_path / "pulled")
    finally:
        stored.write_bytes(original)


def test_a_moved_tag_does_not_matter(
    registry: Registry, published: Manifest, output: Output, tmp_path: Path
) -> None:
    """A moved tag changes nothing for clients that pull by digest."""
    release = published.release
    registry.push(output.image("control-plane"), "edge-worker", tag_of(release))
    registry.pull("edge-worker", release.images["edge-worker"].digest, tmp_path / "pulled")
    assert (tmp_path / "pulled" / "manifest.json").read_bytes() == (
        output.image("edge-worker") / "manifest.json"
    ).read_bytes()


def test_an_altered_output_is_not_published(registry: Registry, output: Output, released: Manifest) -> None:
    """Output that differs from the signed manifest never reaches the registry."""
    listing = output.image("edge-worker") / "manifest.json"
    listing.write_bytes(listing.read_bytes() + b" ")
    with pytest.raises(BuildError, match="the manifest says"):
        Publisher(registry, output, lambda _: None).publish(released)


def test_an_altered_sbom_is_not_published(registry: Registry, output: Output, released: Manifest) -> None:
    """An altered SBOM is not published: it counts as part of the release."""
    bill = output.sbom("control-plane", "amd64")
    # a version, so that the SBOM stays valid
    bill.write_bytes(bill.read_bytes().replace(b"0.19", b"0.18"))
    with pytest.raises(BuildError, match="SBOM"):
        Publisher(registry, output, lambda _: None).publish(released)


def test_cosign_refuses_unsigned_image(registry: Registry, published: Manifest, tmp_path: Path) -> None:
    """With a key pair, offline: the signed image verifies, another one and another key do not."""
    if shutil.which("cosign") is None:
        pytest.skip("cosign not installed: make images-tools")
    for name in ("ours", "theirs"):
        run(
            "env", "COSIGN_PASSWORD=", "cosign", "generate-key-pair", f"--output-key-prefix={tmp_path / name}"
        )
    signed = Registry(
        registry.address, lambda *words, **options: run("env", "COSIGN_PASSWORD=", *words, **options), True
    )
    image = published.release.images["edge-worker"]
    signed.sign("edge-worker", image.digest, str(tmp_path / "ours.key"))
    signed.verify("edge-worker", image.digest, Signer(key=str(tmp_path / "ours.pub")))
    with pytest.raises(RegistryError, match="no signature"):
        signed.verify("edge-worker", image.digest, Signer(key=str(tmp_path / "theirs.pub")))
    with pytest.raises(RegistryError, match="no signature"):
        signed.verify(
            "control-plane",
            published.release.images["control-plane"].digest,
            Signer(key=str(tmp_path / "ours.pub")),
        )


def test_registry_serves_by_digest(registry: Registry, published: Manifest) -> None:
    """A container runtime gets the list byte for byte."""
    digest = published.release.images["edge-worker"].digest
    host, _, prefix = registry.address.partition("/")
    response = httpx.get(
        f"http://{host}/v2/{prefix}/edge-worker/manifests/{digest}",
        headers={"Accept": "application/vnd.docker.distribution.manifest.list.v2+json"},
    )
    assert digest_of(response.content) == digest
