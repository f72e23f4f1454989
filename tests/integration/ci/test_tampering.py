"""Tampering between a commit and `docker run`: refused at each point, by name.

What is synthesised, and what runs on an instance, is refused by `tests/infra/test_releases.py`; the instance's program runs here, too.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.integration.ci.test_registry import blob_file
from tests.unit.ci.tree import ROOT, Tree, git, plant_tree, start_history

from airbridge.ci.exceptions import CiError, ManifestError, PromotionRefused, RegistryError, ToolError
from airbridge.ci.images import provenance
from airbridge.ci.images.assemble import Output
from airbridge.ci.publish import Publisher, require_published
from airbridge.ci.registry import Registry
from airbridge.ci.release import pins
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.release.signers import Signer
from airbridge.ci.rollout.cdktf import Cdktf
from airbridge.ci.rollout.rules import Rules
from airbridge.ci.tools import run

WORKFLOW = "https://github.com/airbridge/airbridge/.github/workflows/main.yml@refs/heads/main"
BRANCH = "https://github.com/airbridge/airbridge/.github/workflows/main.yml@refs/heads/other"
ISSUER = "https://token.actions.githubusercontent.com"
# Object identifier of the issuer in Sigstore's certificates.
_ISSUER_OID = "1.3.6.1.4.1.57264.1.1"

needs_cosign = pytest.mark.skipif(
    shutil.which("cosign") is None, reason="cosign not installed: make images-tools"
)


def quiet(*words: object, **options: object) -> str:
    """Call a program with an empty password for cosign's keys."""
    return run("env", "COSIGN_PASSWORD=", *words, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class KeyPair:
    """Key pair of cosign, as files."""

    private: str
    public: str


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    """Release pipeline's cosign key."""
    return _key_pair(tmp_path_factory.mktemp("ours"))


def _key_pair(folder: Path) -> KeyPair:
    quiet("cosign", "generate-key-pair", f"--output-key-prefix={folder / 'pair'}")
    return KeyPair(str(folder / "pair.key"), str(folder / "pair.pub"))


@pytest.fixture
def registry(registry_address: str, request: pytest.FixtureRequest) -> Registry:
    """A corner of the registry for one test."""
    return Registry(f"{registry_address}/x{abs(hash(request.node.name)):x}", quiet, plain=True)


@pytest.fixture
def signed(registry: Registry, output: Output, released: Manifest, key: KeyPair) -> Manifest:
    """The release, published and signed with the key."""
    Publisher(registry, output, lambda _: None, key.private).publish(released)
    return released


@pytest.fixture
def project(tmp_path: Path) -> Tree:
    """Release 1 everywhere, release 2 in prod, in Git."""
    tree = plant_tree(tmp_path / "project")
    shutil.rmtree(tree.root / "infra/cdktf.out")
    start_history(tree, "Release 1 everywhere")
    for name in ("dev", "staging", "prod"):
        tree.pin(name, tree.release(2))
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "-m", "Release 2 everywhere")
    return tree


def deployed(tree: Tree) -> Manifest:
    """Check prod's deployment of what is committed now."""
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "--allow-empty", "-m", "Tampered")
    return Rules(tree.checkout, datetime.now(tz=UTC)).check_deployment("prod")


def test_1_altered_manifest(project: Tree) -> None:
    """A value of the manifest that differs from what was signed."""
    project.edit(pins.release_path("prod"), r'"python": "3\.12\.14"', '"python": "3.12.13"')
    with pytest.raises(ManifestError, match="does not match: the manifest was altered"):
        deployed(project)


def test_2_replaced_signature(project: Tree) -> None:
    """A signature by a key that nobody listed, over the right bytes."""
    forger = plant_tree(project.root.parent / "forger")
    forged = Manifest(release=project.release(2).release).signed(forger.key)
    project.write(pins.release_path("prod"), forged.text())
    with pytest.raises(ManifestError, match=r"is signed by \w+, but trusted is \w+"):
        deployed(project)


@pytest.mark.parametrize("name", ["control_plane", "worker", "previous_worker"])
def test_3_digest_in_environment(project: Tree, name: str) -> None:
    """Another digest in the environment's file, for each image that is applied."""
    assert name in pins.load(project.checkout, "prod").images
    project.edit(pins.toml_path("prod"), rf'^({name} = ".*@sha256:)\w+"', rf'\g<1>{"ab" * 32}"')
    with pytest.raises(PromotionRefused, match=rf"prod\.toml:\d+: {name} is "):
        deployed(project)


def test_4_release_file_of_another_release(project: Tree) -> None:
    """A release of before, whose signature still holds, under today's digests."""
    project.write(pins.release_path("prod"), project.release(1).text())
    with pytest.raises(PromotionRefused, match=r"control_plane is not sha256:\w+, the digest of its release"):
        deployed(project)


@needs_cosign
def test_untouched_release_is_accepted(registry: Registry, signed: Manifest, key: KeyPair) -> None:
    """Nothing tampered with: images, SBOMs and provenance verify, and the provenance names commit and base."""
    signer = Signer(key=key.public)
    require_published(registry, signed, signer)
    image = signed.release.images["edge-worker"]
    [statement] = registry.attested("edge-worker", image.digest, provenance.COSIGN_TYPE, signer)
    assert provenance.PREDICATE_TYPE == statement["predicateType"]
    parameters = statement["predicate"]["buildDefinition"]["externalParameters"]
    assert parameters["source"].endswith(f"@{signed.release.revision}")
    assert parameters["base"] == signed.release.base


@contextmanager
def flipped(file: Path) -> Iterator[None]:
    """One bit of a file changed."""
    original = file.read_bytes()
    content = bytearray(original)
    content[len(content) // 2] ^= 1
    try:
        file.write_bytes(content)
        yield
    finally:
        file.write_bytes(original)


@needs_cosign
@pytest.mark.parametrize("part", ["layer", "config"])
def test_5_image_in_registry(
    registry: Registry, registry_data: Path, signed: Manifest, output: Output, tmp_path: Path, part: str
) -> None:
    """A bit of a layer or of the configuration, in the registry's storage."""
    image = signed.release.images["edge-worker"]
    folder = output.image("edge-worker")
    inner = json.loads((folder / f"{image.parts['amd64'].digest[7:]}.manifest.json").read_text())
    blob = inner["layers"][0]["digest"] if part == "layer" else inner["config"]["digest"]
    with flipped(blob_file(registry_data, blob)), pytest.raises(RegistryError, match=image.digest):
        registry.pull("edge-worker", image.digest, tmp_path / "pulled")


@needs_cosign
def test_6_sbom_replaced(registry: Registry, signed: Manifest, output: Output, key: KeyPair) -> None:
    """An SBOM with one component less, under the image's tag, even signed with the right key."""
    part = signed.release.images["edge-worker"].parts["amd64"]
    bill = json.loads(output.sbom("edge-worker", "amd64").read_text())
    del bill["components"][0]
    made = registry.attach_sbom("edge-worker", part.digest, json.dumps(bill).encode())
    registry.sign("edge-worker", made, key.private)
    with pytest.raises(
        RegistryError, match=rf"edge-worker: {part.digest}: its SBOM is .* the release names {part.sbom}"
    ):
        require_published(registry, signed, Signer(key=key.public))


@needs_cosign
def test_6_sbom_unsigned(registry: Registry, output: Output, released: Manifest, key: KeyPair) -> None:
    """An SBOM that nobody signed, beside a signed image."""
    publisher = Publisher(registry, output, lambda _: None)
    publisher.publish(released)
    for name, image in released.release.images.items():
        registry.sign(name, image.digest, key.private)
    with pytest.raises(RegistryError, match="no signature of"):
        require_published(registry, released, Signer(key=key.public))


@needs_cosign
@pytest.mark.parametrize("change", ["revision", "base", "builder", "signer", "missing"])
def test_7_provenance(
    registry: Registry, output: Output, released: Manifest, key: KeyPair, tmp_path: Path, change: str
) -> None:
    """Provenance of another commit, base or builder, by another signer, or none at all."""
    publisher = Publisher(registry, output, lambda _: None, key.private)
    for name, image in released.release.images.items():
        registry.push(output.image(name), name, "image")
        registry.sign(name, image.digest, key.private)
        registry.sign(name, publisher._sbom(name, "amd64", image), key.private)
        update = {"revision": {"revision": "d" * 40}, "base": {"base": "other@sha256:" + "3" * 64}}.get(
            change, {}
        )
        told = provenance.predicate(
            released.release.model_copy(update=update),
            name,
            "https://elsewhere" if change == "builder" else provenance.BY_HAND,
        )
        signing = (
            _key_pair(tmp_path / name).private
            if change == "signer" and not (tmp_path / name).mkdir()
            else key.private
        )
        if change != "missing":
            registry.attest(name, image.digest, provenance.COSIGN_TYPE, told, signing)
    says = {
        "revision": "tells of another build than the release",
        "base": "tells of another build than the release",
        "builder": "names the builder https://elsewhere",
        "signer": "no slsaprovenance1 signed by",
        "missing": "no slsaprovenance1 signed by",
    }
    with pytest.raises(RegistryError, match=says[change]):
        require_published(registry, released, Signer(key=key.public))


@needs_cosign
def test_identity_is_verified(registry: Registry, output: Output, released: Manifest, tmp_path: Path) -> None:
    """An image that the same workflow signed on another branch is refused, and so is another issuer: identity, not only a certificate."""
    authority = Authority(tmp_path)
    image = released.release.images["edge-worker"]
    registry.push(output.image("edge-worker"), "edge-worker", "image")
    _sign_as(registry, "edge-worker", image.digest, authority.certify(BRANCH, ISSUER))
    ours = Signer(identity=WORKFLOW, issuer=ISSUER, roots=authority.roots)
    with pytest.raises(RegistryError, match=f"no signature of {WORKFLOW}, as {ISSUER} knows it"):
        registry.verify("edge-worker", image.digest, ours)
    registry.verify(
        "edge-worker", image.digest, Signer(identity=BRANCH, issuer=ISSUER, roots=authority.roots)
    )
    with pytest.raises(RegistryError, match="no signature of"):
        registry.verify(
            "edge-worker",
            image.digest,
            Signer(identity=BRANCH, issuer="https://elsewhere", roots=authority.roots),
        )
    _sign_as(registry, "edge-worker", image.digest, authority.certify(WORKFLOW, ISSUER))
    registry.verify("edge-worker", image.digest, ours)


class Authority:
    """Authority that issues certificates as Sigstore's does: an identity, and who knows it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        made = self._builder(self.name, self.key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        made = made.add_extension(_usage(sign=False, certify=True), critical=True)
        self.roots = str(folder / "roots.pem")
        Path(self.roots).write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(tz=UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(hours=1))
        )

    def certify(self, identity: str, issuer: str) -> tuple[str, str, str]:
        """Return cosign's key, certificate and chain of an identity, as paths."""
        folder = self.folder / f"{abs(hash(identity)):x}"
        folder.mkdir()
        quiet("cosign", "generate-key-pair", f"--output-key-prefix={folder / 'own'}")
        public = load_pem_public_key((folder / "own.pub").read_bytes())
        assert isinstance(public, ec.EllipticCurvePublicKey)
        made = (
            self._builder(x509.Name([]), public)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True
            )
            .add_extension(_usage(sign=True, certify=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
            .add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(_ISSUER_OID), issuer.encode()),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        (folder / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
        return str(folder / "own.key"), str(folder / "cert.pem"), self.roots


def _usage(*, sign: bool, certify: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign, key_cert_sign=certify, crl_sign=certify, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _sign_as(registry: Registry, name: str, digest: str, files: tuple[str, str, str]) -> None:
    key, certificate, chain = files
    quiet(
        "cosign", "sign", "--key", key, "--certificate", certificate, "--certificate-chain", chain,
        "--tlog-upload=false", "--allow-insecure-registry", "--allow-http-registry", registry.reference(name, digest),
    )  # fmt: skip


@dataclass(frozen=True)
class Instance:
    """What user data installed on an instance, below a folder."""

    folder: Path

    def verify(self, reference: str) -> None:
        """Verify an image as the worker's unit does before `docker pull`; ToolError with the reason."""
        run("env", f"AIRBRIDGE_TRUST={self.folder / 'airbridge'}", self.folder / "verify", reference)


@pytest.fixture
def instance(project: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """Instance of prod: the release as the stacks put it into user data, installed by that part of the user data."""
    monkeypatch.syspath_prepend(str(ROOT / "infra/src"))
    for name in [each for each in sys.modules if each.startswith("airbridge.infra")]:
        monkeypatch.delitem(sys.modules, name)
    from airbridge.infra import environment
    from airbridge.infra.trust import release_check, releases

    folder = project.root / "infra/environments"
    found = releases.load(
        environment.load(folder / "prod.toml"), folder, project.root / "images/release-keys.toml"
    )
    release = found.of(f"edge-worker@{project.release(2).release.images['edge-worker'].digest}")
    assert release is not None
    (tmp_path / "airbridge").mkdir()
    script = release_check.install(release).replace("/etc/airbridge", str(tmp_path / "airbridge"))
    run("bash", "-euc", script.replace("/usr/local/bin/airbridge-verify", str(tmp_path / "verify")))
    return Instance(tmp_path)


def test_8_user_data_runs_the_signed_image(project: Tree, instance: Instance) -> None:
    """The instance runs the release that `airbridge-ci sign` signed: both sides agree on what is signed."""
    digest = project.release(2).release.images["edge-worker"].digest
    instance.verify(f"registry/airbridge-prod/edge-worker@{digest}")
    assert stat.S_IMODE((instance.folder / "verify").stat().st_mode) == 0o755


@pytest.mark.parametrize("what", ["digest", "key", "signature", "release"])
def test_8_user_data(project: Tree, instance: Instance, what: str) -> None:
    """Another digest, key, signature or release in user data than those that belong together."""
    digest = project.release(2).release.images["edge-worker"].digest
    forged, folder = f"sha256:{'ab' * 32}", instance.folder / "airbridge"
    if what == "key":
        run("openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / "forger.pem")
        run("openssl", "pkey", "-in", folder / "forger.pem", "-pubout", "-out", folder / "release.pub")
        run(
            "openssl", "pkeyutl", "-sign", "-inkey", folder / "forger.pem", "-rawin", "-in", folder / "release",
            "-out", folder / "release.sig",
        )  # fmt: skip
    if what == "signature":
        (folder / "release.sig").write_bytes(bytes(64))
    if what == "release":
        (folder / "release").write_text((folder / "release").read_text().replace(digest, forged))
    says = {"digest": "the signed release has no such image", "key": "the key is not"}
    with pytest.raises(ToolError, match=says.get(what, "the release is not signed by")) as refused:
        instance.verify(
            f"registry/airbridge-prod/edge-worker@{digest if what in ('key', 'signature') else forged}"
        )
    assert "is not run" in str(refused.value)
    assert isinstance(refused.value, CiError)


def test_rolled_back_wave_is_synthesised(project: Tree) -> None:
    """On the way back the stacks are made of the signed release of before, and the files are as they were afterwards."""
    python = ROOT / "infra/.venv/bin/python"
    if not python.exists():
        pytest.skip("CDK for Terraform is not installed: make infra-install")
    releases = (project.release(2), project.release(1))
    command = (f"CDKTF_OUTDIR={project.root / 'out'}", str(python), "-m", "airbridge.infra.app")
    apply = Cdktf(project.checkout, "prod", command, releases)
    files = {path: path.read_text() for path in (project.root / "infra/environments").iterdir()}
    old = pins.WorkerImages.of(releases[1].release)
    apply("edge-eu-west-1", old)
    assert files == {path: path.read_text() for path in (project.root / "infra/environments").iterdir()}
    [stack] = (project.root / "out").glob("stacks/edge-eu-west-1/cdk.tf.json")
    templates = json.loads(stack.read_text())["resource"]["aws_launch_template"].values()
    for template in templates:
        script = base64.b64decode(template["user_data"]).decode()
        assert f"airbridge-verify {registry_of(script)}/edge-worker@{old.worker}\n" in script
        assert releases[1].release.canonical().decode() in script
    forged = pins.WorkerImages(f"sha256:{'ab' * 32}")
    with pytest.raises(ToolError, match="in no signed release"):
        apply("edge-eu-west-1", forged)


def registry_of(script: str) -> str:
    """Return the registry and prefix of the image that a boot script pulls."""
    found = re.search(r"docker pull (\S+)/edge-worker@", script)
    assert found
    return found[1]
