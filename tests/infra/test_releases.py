"""Signed releases: nothing is synthesised, and nothing run on an instance, that no signed release names."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

pytest.importorskip("cdktf")

from tests.infra.aws_rules.test_compute import Host, resources
from tests.infra.conftest import ENVIRONMENTS, read

from airbridge.infra.app import synthesise
from airbridge.infra.exceptions import ReleaseError
from airbridge.infra.settings import Settings
from airbridge.infra.trust import release_check, releases
from airbridge.infra.trust.releases import SignedRelease

KEY = Ed25519PrivateKey.generate()
OTHER_KEY = Ed25519PrivateKey.generate()
CONTROL_PLANE, WORKER, PREVIOUS, TOOLS = (f"sha256:{letter * 62}42" for letter in "abcd")


def encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def kid(key: Ed25519PrivateKey) -> str:
    return hashlib.sha256(key.public_key().public_bytes_raw()).hexdigest()[:16]


def image(digest: str) -> dict[str, object]:
    parts = {
        each: {"digest": digest, "config": digest, "sbom": digest, "compressed_bytes": 1}
        for each in ("amd64", "arm64")
    }
    return {"digest": digest, "parts": parts}


def manifest(key: Ed25519PrivateKey = KEY, worker: str = WORKER) -> dict[str, object]:
    """A signed release as `airbridge-ci sign` writes it."""
    release = {
        "schema": 1,
        "revision": "c" * 40,
        "images": {"control-plane": image(CONTROL_PLANE), "edge-worker": image(worker)},
        "derived": {
            "tools": image(TOOLS) | {"base": worker, "dockerfile": "images/derived/tools.Dockerfile"}
        },
    }
    content = releases.CONTEXT + json.dumps(
        release, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    return {
        "release": release,
        "signatures": [{"kid": kid(key), "ed25519": encode(key.sign(content.encode()))}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Environments with dev on a signed release, and the file of trusted keys where the checkout has it."""
    made = tmp_path / "infra" / "environments"
    made.mkdir(parents=True)
    text = (ENVIRONMENTS / "dev.toml").read_text()
    named = (
        f'control_plane = "control-plane@{CONTROL_PLANE}"\nworker = "edge-worker@{WORKER}"\n'
        f'previous_worker = "edge-worker@{PREVIOUS}"\n'
    )
    text = re.sub(r'^control_plane = "c.*\n^worker = .*\n', named, text, flags=re.MULTILINE)
    (made / "dev.toml").write_text(text)
    (made / "dev.release.json").write_text(json.dumps(manifest(), indent=2))
    (made / "dev.previous.json").write_text(json.dumps({"releases": [manifest(worker=PREVIOUS)]}))
    keys = tmp_path / "images" / "release-keys.toml"
    keys.parent.mkdir()
    public = encode(KEY.public_key().public_bytes_raw())
    keys.write_text(f'[[key]]\nkid = "{kid(KEY)}"\npublic_key = "{public}"\nowner = "tests"\n')
    return made


def synth(folder: Path, out: str = "out") -> dict[str, object]:
    return read(synthesise(Settings("dev", folder), folder.parent / out))


def test_signed_release_is_synthesised(folder: Path) -> None:
    """Each boot script has the signed release, verifies its image before the pull, and stays within AWS's limit."""
    stacks = synth(folder)
    templates = list(resources(stacks, "aws_launch_template"))
    assert templates
    for path, template in templates:
        script = base64.b64decode(template["user_data"]).decode()
        assert len(script.encode()) <= 16_384, f"{path}: {len(script.encode())}"
        pulled = re.search(r"^ExecStartPre=/usr/bin/docker pull (\S+)", script, re.MULTILINE)
        assert pulled
        verified = f"ExecStartPre={release_check.PROGRAM} {pulled[1]}\n"
        assert 0 < script.find(verified) < pulled.start()
        assert kid(KEY) in script
        assert "dnf install -y awscli openssl" in script
    assert stacks == synth(folder, "again"), "two syntheses of the same files are equal"


def _edit(folder: Path, file: str, before: str, after: str) -> None:
    text = (folder / file).read_text()
    assert before in text
    (folder / file).write_text(text.replace(before, after, 1))


def _replace(folder: Path, file: str, content: object) -> None:
    (folder / file).write_text(json.dumps(content))


FORGED = f"sha256:{'e' * 62}42"


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda f: _edit(f, "dev.toml", WORKER, FORGED), r"dev\.toml: images\.worker: .* in no signed release"),
        (lambda f: _edit(f, "dev.toml", CONTROL_PLANE, FORGED), r"images\.control_plane: .* in no signed release"),
        (lambda f: _edit(f, "dev.toml", PREVIOUS, FORGED), r"images\.previous_worker: .* in no signed release"),
        (lambda f: _edit(f, "dev.toml", CONTROL_PLANE, "sha256:" + "1" * 64), r"images\.control_plane"),
        (lambda f: (f / "dev.previous.json").unlink(), r"images\.previous_worker: .* in no signed release"),
        (lambda f: (f / "dev.release.json").unlink(), r"in no signed release"),
        (lambda f: _edit(f, "dev.release.json", WORKER, FORGED), r"dev\.release\.json: the signature of"),
        (lambda f: _edit(f, "dev.release.json", '"ed25519": "', '"ed25519": "A'), "the signature of"),
        (lambda f: _replace(f, "dev.release.json", manifest(OTHER_KEY)), r"by no key of images/release-keys"),
        (lambda f: _replace(f, "dev.release.json", {**manifest(), "signatures": []}), "signed by nobody"),
        (lambda f: _replace(f, "dev.previous.json", {"releases": [manifest(OTHER_KEY, PREVIOUS)]}), r"dev\.previous\.json: is signed by"),
        (lambda f: _edit(f, "dev.release.json", '"schema"', '"revision": 1, "schema"'), "more than once"),
    ],
)  # fmt: skip
def test_unsigned_image_is_not_synthesised(folder: Path, tamper: Callable[[Path], object], says: str) -> None:
    """Whatever is altered, no task definition and no boot script comes to be."""
    tamper(folder)
    with pytest.raises(ReleaseError, match=says):
        synth(folder)
    assert not (folder.parent / "out").exists()


def test_retired_key_is_refused(folder: Path) -> None:
    """Whose key is no longer listed has signed nothing that may be synthesised."""
    (folder.parents[1] / "images/release-keys.toml").write_text("")
    with pytest.raises(ReleaseError, match="by no key"):
        synth(folder)


def test_key_under_another_name_is_refused(folder: Path) -> None:
    """A key that stands under another's id is named."""
    file = folder.parents[1] / "images/release-keys.toml"
    file.write_text(file.read_text().replace(kid(KEY), kid(OTHER_KEY)))
    with pytest.raises(ReleaseError, match="is not the id of its public key"):
        synth(folder)


def test_derived_images_are_verified(folder: Path) -> None:
    """A derived image is one of the release, by name and digest."""
    _edit(folder, "dev.toml", "\n[pipelines]", f'\n[images.derived]\ntools = "tools@{TOOLS}"\n\n[pipelines]')
    _edit(folder, "dev.toml", 'name = "default"', 'name = "default"\nimage = "tools"')
    scripts = [
        base64.b64decode(one["user_data"]).decode()
        for _, one in resources(synth(folder), "aws_launch_template")
    ]
    assert any(f"{release_check.PROGRAM} " in each and f"/tools@{TOOLS}" in each for each in scripts)
    _edit(folder, "dev.toml", TOOLS, FORGED)
    with pytest.raises(ReleaseError, match=r"images\.derived\.tools"):
        synth(folder)


class Instance(Host):
    """Host with openssl and a signed release, and the paths below a folder of its own."""

    def install(self, release: SignedRelease) -> None:
        """Run the part of user data that installs the release and its verification."""
        (self.root / "etc/airbridge").mkdir(parents=True)
        script = release_check.install(release)
        for path in ("/etc/", "/usr/local/bin/"):
            script = script.replace(f" {path}", f" {self.root}{path}")
        done = self.run(script)
        assert 0 == done.returncode, done.stderr

    def verify(self, reference: str) -> subprocess.CompletedProcess[str]:
        """Verify an image as the worker's unit does before it pulls."""
        program = self.root / "usr/local/bin/airbridge-verify"
        return self.run(f"AIRBRIDGE_TRUST={self.root}/etc/airbridge {program} {reference}")


@pytest.fixture
def instance(tmp_path: Path, folder: Path) -> Instance:
    """Instance whose user data installed dev's release."""
    made = Instance(tmp_path)
    found = releases.load(*_loaded(folder))
    signed = found.of(f"edge-worker@{WORKER}")
    assert signed is not None
    made.install(signed)
    return made


def _loaded(folder: Path) -> tuple[object, Path, Path]:
    from airbridge.infra import environment

    return environment.load(folder / "dev.toml"), folder, Settings("dev", folder).release_keys


REGISTRY = "111111111111.dkr.ecr.eu-west-1.amazonaws.com/airbridge-dev"


def test_instance_runs_images_of_its_release(instance: Instance) -> None:
    """The worker's image and the derived one pass, verified by openssl."""
    for name, digest in (("edge-worker", WORKER), ("tools", TOOLS)):
        done = instance.verify(f"{REGISTRY}/{name}@{digest}")
        assert (0, "") == (done.returncode, done.stderr)


def _swap_key(root: Path) -> None:
    public = OTHER_KEY.public_key()
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    (root / "release.pub").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _resign(root: Path) -> None:
    _swap_key(root)
    (root / "release.sig").write_bytes(OTHER_KEY.sign((root / "release").read_bytes()))


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("tamper", "reference", "says"),
    [
        (None, f"edge-worker@{FORGED}", "the signed release has no such image"),
        (None, f"tools@{WORKER}", "the signed release has no such image"),
        (None, f"edge-worker@{CONTROL_PLANE}", "the signed release has no such image"),
        (lambda r: _flip(r / "release.sig"), f"edge-worker@{WORKER}", "the release is not signed by"),
        (lambda r: (r / "release.sig").unlink(), f"edge-worker@{WORKER}", "the release is not signed by"),
        (lambda r: (r / "release").write_text((r / "release").read_text().replace(WORKER, FORGED)),
         f"edge-worker@{FORGED}", "the release is not signed by"),
        (_swap_key, f"edge-worker@{WORKER}", "the release is not signed by"),
        (_resign, f"edge-worker@{WORKER}", "the key is not"),
    ],
)  # fmt: skip
def test_instance_refuses_what_is_not_signed(
    instance: Instance, tamper: Callable[[Path], object] | None, reference: str, says: str
) -> None:
    """A digest, signature, release or key other than the signed one is refused by name, and docker is never called."""
    if tamper is not None:
        tamper(instance.root / "etc/airbridge")
    done = instance.verify(f"{REGISTRY}/{reference}")
    assert 0 != done.returncode
    assert says in done.stderr
    assert reference in done.stderr
