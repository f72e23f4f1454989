"""Releases copied from registry to registry by digest: whole, resumable, and refused with digest and registry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.ci.conftest import serve_registry
from tests.integration.ci.test_registry import blob_file
from tests.unit.ci.tree import ROOT
from typer.testing import CliRunner

from airbridge.ci.cli.main import app
from airbridge.ci.copies import Copier
from airbridge.ci.exceptions import ManifestError, RegistryError
from airbridge.ci.images.assemble import Output
from airbridge.ci.images.layout import digest_of
from airbridge.ci.publish import Publisher, require_published
from airbridge.ci.registry import Registry
from airbridge.ci.release import keys, manifest
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.release.signers import Signer
from airbridge.ci.tools import run


@pytest.fixture(scope="module")
def other_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second registry: that of another account."""
    with serve_registry(tmp_path_factory.mktemp("other")) as address:
        yield address


@pytest.fixture
def source(registry_address: str, request: pytest.FixtureRequest) -> Registry:
    """A corner of the first registry for one test."""
    return Registry(f"{registry_address}/s{abs(hash(request.node.name)):x}", run, plain=True)


@pytest.fixture
def target(other_address: str, request: pytest.FixtureRequest) -> Registry:
    """A corner of the second registry for one test."""
    return Registry(f"{other_address}/t{abs(hash(request.node.name)):x}", run, plain=True)


@pytest.fixture
def published(source: Registry, output: Output, released: Manifest) -> Manifest:
    """The release, in the first registry."""
    Publisher(source, output, lambda _: None).publish(released)
    return released


def copier(source: Registry, target: Registry, said: list[str] | None = None) -> Copier:
    """Copier whose progress goes to `said`."""
    return Copier(source, target, (said if said is not None else []).append)


def test_copied_release_equals_published(
    source: Registry, target: Registry, published: Manifest, output: Output, tmp_path: Path
) -> None:
    """Every byte of the images arrives under the same digests, the SBOMs beside them."""
    copied = copier(source, target).copy(published)
    require_published(target, published, None)
    for name, image in published.release.images.items():
        target.pull(name, image.digest, tmp_path / name)
        there = {file.name: digest_of(file.read_bytes()) for file in output.image(name).iterdir()}
        assert there == {file.name: digest_of(file.read_bytes()) for file in (tmp_path / name).iterdir()}
        for part in image.parts.values():
            tag = target.sbom_tag(part.digest)
            assert target.tagged(name, tag) == source.tagged(name, tag)
            bill = json.loads(target.tagged(name, tag))
            assert bill["layers"][0]["digest"] == part.sbom
    assert {(each.name, each.copied) for each in copied} == {("control-plane", True), ("edge-worker", True)}


def test_signatures_are_copied(
    source: Registry, target: Registry, published: Manifest, output: Output, tmp_path: Path
) -> None:
    """cosign verifies the copy with the same key, SBOMs and provenance included, without a new signature."""
    if shutil.which("cosign") is None:
        pytest.skip("cosign not installed: make images-tools")
    run("env", "COSIGN_PASSWORD=", "cosign", "generate-key-pair", f"--output-key-prefix={tmp_path / 'ours'}")
    signing = Registry(
        source.address, lambda *words, **options: run("env", "COSIGN_PASSWORD=", *words, **options), True
    )
    Publisher(signing, output, lambda _: None, str(tmp_path / "ours.key")).publish(published)
    copier(source, target).copy(published)
    require_published(target, published, Signer(key=str(tmp_path / "ours.pub")))


def test_copying_again_pushes_nothing(source: Registry, target: Registry, published: Manifest) -> None:
    """A second run finds everything there: tags of ECR never move, and a push of one would be refused."""
    copier(source, target).copy(published)
    called: list[str] = []

    def watched(*words: object, **options: object) -> str:
        called.append(" ".join(str(word) for word in words))
        return run(*words, **options)  # type: ignore[arg-type]

    again = copier(source, Registry(target.address, watched, True)).copy(published)
    assert not any(each.copied or each.artifacts for each in again)
    pushes = [call for call in called if call.startswith("skopeo copy")]
    assert not [call for call in pushes if call.split()[-1].startswith("docker://")]


def test_a_cut_copy_is_resumed(source: Registry, target: Registry, published: Manifest) -> None:
    """What arrived before a cut stays; the next run copies the rest."""
    copies = 0

    def cut(*words: object, **options: object) -> str:
        nonlocal copies
        if words[:2] == ("skopeo", "copy") and str(words[-1]).startswith("docker://"):
            copies += 1
            if copies == 2:
                raise KeyboardInterrupt
        return run(*words, **options)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        Copier(Registry(source.address, cut, True), target, lambda _: None).copy(published)
    first, second = published.release.images
    said: list[str] = []
    copied = copier(source, target, said).copy(published)
    require_published(target, published, None)
    assert {each.name: each.copied for each in copied} == {first: False, second: True}
    assert all(each.artifacts for each in copied), "the cut was before the first SBOM"


def test_a_missing_digest_is_named(source: Registry, target: Registry, released: Manifest) -> None:
    """A release that was never pushed is refused before anything is copied."""
    digest = released.release.images["control-plane"].digest
    with pytest.raises(RegistryError, match=f"{source.address}/control-plane@{digest}"):
        copier(source, target).copy(released)


def test_an_altered_layer_is_not_copied(
    source: Registry, registry_data: Path, published: Manifest, output: Output, tmp_path: Path
) -> None:
    """Other bytes under a layer's digest are refused with the image's digest and both registries; no image arrives.

    The target is a registry of its own: another test's may have the layer already, and mounts it.
    """
    image = published.release.images["control-plane"]
    folder = output.image("control-plane")
    inner = json.loads((folder / f"{image.parts['amd64'].digest[7:]}.manifest.json").read_text())
    stored = blob_file(registry_data, inner["layers"][0]["digest"])
    original = stored.read_bytes()
    (tmp_path / "empty").mkdir()
    with serve_registry(tmp_path / "empty") as address:
        target = Registry(f"{address}/airbridge", run, plain=True)
        try:
            stored.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
            with pytest.raises(RegistryError) as refusal:
                copier(source, target).copy(published)
        finally:
            stored.write_bytes(original)
        assert not target.holds("control-plane", image.digest)
    assert f"{source.address}/control-plane@{image.digest}" in str(refusal.value)
    assert target.address in str(refusal.value)


def test_a_lost_sbom_is_refused(
    source: Registry, target: Registry, output: Output, released: Manifest
) -> None:
    """A source without an SBOM that the release names is refused: a copy has what was published."""
    for name in released.release.images:
        source.push(output.image(name), name, "only-the-image")
    part = released.release.images["control-plane"].parts["amd64"]
    with pytest.raises(RegistryError, match=f"{source.address}/control-plane.*{part.digest}.*SBOM"):
        copier(source, target).copy(released)


def test_an_unreachable_target_is_named(source: Registry, published: Manifest) -> None:
    """A registry that does not answer is not taken for one that lacks the image."""
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1/nowhere/control-plane@sha256:"):
        copier(source, Registry("127.0.0.1:1/nowhere", run, plain=True)).copy(published)


def test_copy_command(
    source: Registry, target: Registry, published: Manifest, output: Output, tmp_path: Path
) -> None:
    """The command verifies the release's signature, copies, and prints where the images are; an unsigned release is refused."""
    key = tmp_path / "release.key"
    trusted = tmp_path / "keys.toml"
    trusted.write_text(keys.create(key, "tests"), encoding="utf-8")
    signed, unsigned = tmp_path / "signed.json", tmp_path / "unsigned.json"
    signed.write_text(manifest.load(output.manifest).signed(keys.private(key)).text(), encoding="utf-8")
    unsigned.write_text(manifest.load(output.manifest).text(), encoding="utf-8")
    words = [
        "copy",
        source.address,
        target.address,
        "--plain-http",
        "--keys",
        str(trusted),
        "--root",
        str(ROOT),
    ]
    done = CliRunner().invoke(app, [*words, "--manifest", str(signed)])
    assert done.exit_code == 0, done.output
    assert done.stdout.split() == [
        target.reference(name, image.digest) for name, image in published.release.images.items()
    ]
    refused = CliRunner().invoke(app, [*words, "--manifest", str(unsigned)])
    assert isinstance(refused.exception, ManifestError)
