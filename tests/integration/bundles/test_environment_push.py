"""Environments that a CI job builds and pushes, for a control plane that has no package index."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.bundles.conftest import Processor
from tests.support.cloud import Cloud
from tests.support.wheels import Index
from typer.testing import CliRunner

from airbridge.control_plane import environments
from airbridge.control_plane.cli.app import build
from airbridge.control_plane.dags import Publisher
from airbridge.control_plane.environments import EnvironmentReceiver, Offer, PushedEnvironment
from airbridge.core.code import environment
from airbridge.core.code.snapshot import pack
from airbridge.core.exceptions import BundleError, BundleRefused
from airbridge.executor.bundle_settings import PackageSettings
from airbridge.executor.bundles import versions
from airbridge.executor.bundles.check import TreeCheck
from airbridge.executor.bundles.environments import inputs

DAG = 'import tiny\nfrom airflow.sdk import DAG\n\nwith DAG("uses_tiny", tags=[tiny.VERSION]):\n    pass\n'
NO_INDEX = PackageSettings(index="none", seconds=180.0)


class Gateway:
    """A client whose gateway is a function call away. Counts the bytes of archives that it was sent."""

    def __init__(self, receiver: EnvironmentReceiver) -> None:
        self._receiver = receiver
        self.received = 0

    def put(self, path: str, body: Any) -> Any:
        bundle = path.removeprefix("environments/")
        return json.loads(json.dumps(asdict(self._receiver.offer(bundle, Offer(**body), "operator:ci"))))

    def put_bytes(self, path: str, content: bytes, content_type: str, sent: Callable[[int], None]) -> Any:
        assert content_type == "application/gzip"
        _, bundle, digits = path.split("/")
        self._receiver.take(bundle, f"sha256:{digits}", content)
        self.received += len(content)
        sent(len(content))
        return {}


class Watcher:
    """Takes note of nothing."""

    def sending(self, version: str, archive_bytes: int) -> None:
        assert version.startswith("sha256:")
        assert archive_bytes

    def sent(self, sent_bytes: int) -> None:
        assert sent_bytes


@pytest.fixture
def gateway(cloud: Cloud) -> Gateway:
    return Gateway(EnvironmentReceiver(cloud.store, lambda _: None, NO_INDEX))


def built(dags: Path, out: Path, index: Index) -> Path:
    """Build as a CI job does, which has the index; leave this process without."""
    with pytest.MonkeyPatch.context() as job:
        job.setenv("AIRFLOW__AIRBRIDGE__PACKAGE_INDEX", "none")
        job.setenv("AIRFLOW__AIRBRIDGE__PACKAGE_FIND_LINKS", str(index.folder))
        result = CliRunner().invoke(build(), ["env", "build", str(dags), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def write(dags: Path, requirements: str) -> None:
    dags.mkdir(exist_ok=True)
    (dags / "one.py").write_text(DAG)
    (dags / "requirements.txt").write_text(requirements)


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("ci")
    index = Index(here / "index")
    index.add("tiny", "1.0")
    write(here / "dags", "tiny==1.0\n")
    return built(here / "dags", here / "built", index)


@pytest.fixture
def folder(dags: Path, tmp_path: Path, built_once: Path) -> Path:
    """What a CI job built for the DAG folder, which needs tiny 1.0."""
    write(dags, "tiny==1.0\n")
    return shutil.copytree(built_once, tmp_path / "built")


def push(gateway: Gateway, folder: Path, bundle: str = "dags") -> PushedEnvironment:
    return environments.push(gateway, folder, bundle, Watcher())


def publisher(cloud: Cloud) -> Publisher:
    check = TreeCheck({}, timeout_seconds=120.0)
    return Publisher(cloud.store, lambda _: None, check=check, packages=NO_INDEX)


def test_pushed_environment_needs_no_index(
    gateway: Gateway, folder: Path, cloud: Cloud, dags: Path, processor: Processor
) -> None:
    """What was refused without an index is published with the packages that were pushed: by a push, and from a folder."""
    with pytest.raises(BundleRefused, match=r"requirements\.txt: cannot be locked: .*tiny was not found"):
        publisher(cloud)("dags", pack(dags).compressed(), "operator:ci")
    pushed = push(gateway, folder)
    (version,) = pushed.sent
    for region in ("us-east-1", "eu-west-1"):
        assert cloud.keys(region) == [cloud.store().key(version)]

    accepted = publisher(cloud)("dags", pack(dags).compressed(), "operator:ci")
    bundle = processor.bundle({"kind": "push"})
    bundle.initialize()
    assert bundle.get_current_version() == accepted.version
    packages = environment.beside(bundle.path)
    assert packages is not None
    assert (packages / "tiny" / "__init__.py").read_text() == 'VERSION = "1.0"\n'

    (dags / "two.py").write_text(DAG.replace("uses_tiny", "also"))
    from_folder = processor.bundle({"kind": "folder", "path": str(dags)})
    from_folder.initialize()
    from_folder.refresh()
    assert from_folder.get_current_version() != accepted.version
    assert environment.version_of(from_folder.path) == version


def test_second_push_sends_nothing(gateway: Gateway, folder: Path) -> None:
    """An archive that the home region has is not sent again."""
    assert push(gateway, folder).sent
    received = gateway.received
    assert push(gateway, folder).sent == ()
    assert gateway.received == received


def test_push_goes_before_what_was_built(gateway: Gateway, cloud: Cloud, dags: Path, tmp_path: Path) -> None:
    """A pushed environment replaces the one of equal requirements: how a newer version of a package gets in."""
    write(dags, "tiny\n")
    index = Index(tmp_path / "index")
    seen = []
    for version in ("1.0", "2.0"):
        index.add("tiny", version)
        push(gateway, built(dags, tmp_path / version, index))
        publisher(cloud)("dags", pack(dags).compressed(), "operator:ci")
        tree = tmp_path / f"tree-{version}"
        cloud.store().fetch(cloud.store().pointer().version or "", tree)
        found = environment.of_tree(tree)
        assert found is not None
        seen.append(found.packages["tiny"])
    assert seen == ["1.0", "2.0"]


def test_environment_of_another_bundle(gateway: Gateway, folder: Path, cloud: Cloud) -> None:
    """Packages that were pushed for one bundle are not another's."""
    pushed = push(gateway, folder, "other")
    assert cloud.store("other").pushed_environment(pushed.inputs)
    assert cloud.store("dags").pushed_environment(pushed.inputs) is None


def test_environment_without_archives_is_not_used(gateway: Gateway, folder: Path, cloud: Cloud) -> None:
    """Without its archives an environment is not used; pushing it again brings them back."""
    pushed = push(gateway, folder)
    region = cloud.catalogue.region("us-east-1")
    assert region is not None
    cloud.moto.client("s3", "us-east-1").delete_object(
        Bucket=region.bundle_bucket, Key=cloud.store().key(pushed.sent[0])
    )
    assert cloud.store().pushed_environment(pushed.inputs) is None
    assert push(gateway, folder) == pushed
    assert cloud.store().pushed_environment(pushed.inputs)


def _altered_archive(folder: Path) -> None:
    (archive,) = folder.glob("*.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-9] + bytes(9))


def _altered_inputs(folder: Path) -> None:
    path = folder / inputs.FILE
    path.write_text(path.read_text().replace("tiny==1.0", "tiny==9.9"))


def _other_python(folder: Path) -> None:
    _rewrite(folder, python="3.99")


def _other_platform_package(folder: Path) -> None:
    found = inputs.Inputs.decode((folder / inputs.FILE).read_bytes())
    _rewrite(folder, constraints={**found.constraints, "sqlalchemy": "2.0.1"})


def _other_machine(folder: Path) -> None:
    _rewrite(folder, machines=("riscv64",))


def _rewrite(folder: Path, **changes: Any) -> None:
    """Change the inputs, with a manifest that fits them."""
    changed = replace(inputs.Inputs.decode((folder / inputs.FILE).read_bytes()), **changes)
    (folder / inputs.FILE).write_bytes(changed.encoded())
    manifest = environment.Environment.decode((folder / environment.MANIFEST).read_bytes())
    (folder / environment.MANIFEST).write_bytes(replace(manifest, inputs=changed.digest).encoded())


def _too_large(folder: Path) -> None:
    manifest = environment.Environment.decode((folder / environment.MANIFEST).read_bytes())
    (found,) = manifest.builds
    large = replace(manifest, builds=(replace(found, bytes=1 << 30),))
    (folder / environment.MANIFEST).write_bytes(large.encoded())


def _no_archive_named(folder: Path) -> None:
    manifest = environment.Environment.decode((folder / environment.MANIFEST).read_bytes())
    (folder / environment.MANIFEST).write_bytes(replace(manifest, builds=()).encoded())


def _no_lock(folder: Path) -> None:
    (folder / environment.LOCK).unlink()


def _no_archive(folder: Path) -> None:
    (archive,) = folder.glob("*.tar.gz")
    archive.unlink()


def _inputs_are_no_json(folder: Path) -> None:
    (folder / inputs.FILE).write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_altered_archive, "the archive ends before its end"),
        (_altered_inputs, r"environment\.json was not built from .airbridge/inputs\.json: build it again"),
        (_other_python, r"it runs Python 3\.\d+, this is for 3\.99: build it with 'airbridge env build' in"),
        (_other_platform_package, r"it has sqlalchemy==1\.4\.\d+.*, here was sqlalchemy==2\.0\.1"),
        (_other_machine, r"its \[airbridge\] package_machines are \w+, this is for riscv64"),
        (_too_large, r"the environment has 1024\.0 MiB; \[airbridge\] package_max_mb allows 768"),
        (_no_archive_named, r"does not name one archive for each machine"),
        (_no_lock, r"has no .airbridge/requirements\.lock: name a folder that"),
        (_no_archive, r"\.tar\.gz is missing: build the environment again"),
        (_inputs_are_no_json, r"inputs\.json is not what 'airbridge env build --out' writes"),
    ],
)
def test_what_was_not_built_for_here_is_refused(
    gateway: Gateway, folder: Path, cloud: Cloud, spoil: Callable[[Path], None], error: str
) -> None:
    """Each difference is named, and nothing is kept or stored."""
    spoil(folder)
    with pytest.raises(BundleError, match=error):
        push(gateway, folder)
    assert cloud.keys("us-east-1") == []


@pytest.mark.parametrize(
    ("texts", "error"),
    [
        ({"lock": "tiny==1.0\0"}, "requirements.lock is not text: it has a NUL character"),
        ({"lock": "\ud800"}, "requirements.lock is not text: surrogates not allowed"),
        ({"lock": "#" * 5_000_000}, "requirements.lock has 5000000 bytes; at most 4194304 are taken"),
        ({"manifest": " " * 2_000_000}, "environment.json has 2000000 bytes; at most 1048576 are taken"),
        ({"manifest": '{"v": 1, "inputs": "", "packages": {}, "builds": [{"python": "", "machine": "", "version": "", "bytes": Infinity}]}'}, "is not an environment manifest"),
        ({"inputs": '{"recipe": Infinity, "sdists": 0, "files": {}, "constraints": {}, "base": [], "platforms": ["3"]}'}, "is not what 'airbridge env build"),
        ({"inputs": '{"recipe": 1, "sdists": 0, "files": {"/etc/passwd": ""}, "constraints": {}, "base": [], "platforms": ["3"]}'}, "has files that name no packages: /etc/passwd"),
    ],
)  # fmt: skip
def test_hostile_texts_are_refused(gateway: Gateway, folder: Path, texts: dict[str, str], error: str) -> None:
    """What the database would not take, or no decoder expects, is refused with a sentence."""
    offer = environments.Built.read(folder).offer
    with pytest.raises(BundleError, match=re.escape(error)):
        gateway.put("environments/dags", asdict(replace(offer, **texts)))


def test_archive_is_read_within_bounds(cloud: Cloud, folder: Path) -> None:
    """An archive that unpacks to more than the setting allows is refused, whatever its manifest says."""
    (archive,) = folder.glob("*.tar.gz")
    receiver = EnvironmentReceiver(cloud.store, lambda _: None, replace(NO_INDEX, max_mb=0.00001))
    with pytest.raises(BundleError, match="more than"):
        receiver.take("dags", f"sha256:{archive.name.removesuffix('.tar.gz')}", archive.read_bytes())
    assert cloud.keys("us-east-1") == []


def test_packages_that_are_switched_off(cloud: Cloud, folder: Path) -> None:
    """A control plane without environments takes none."""
    receiver = EnvironmentReceiver(cloud.store, lambda _: None, replace(NO_INDEX, enabled=False))
    with pytest.raises(BundleError, match=r"\[airbridge\] packages is False"):
        push(Gateway(receiver), folder)


def test_oldest_environments_are_forgotten(cloud: Cloud) -> None:
    """The newest of a bundle are kept."""
    files = {environment.MANIFEST: b"{}", environment.LOCK: b""}
    for number in range(versions.KEPT_ENVIRONMENTS + 1):
        cloud.registry.keep_environment("dags", f"{number:064x}", files, "ci")
    assert cloud.registry.environment("dags", f"{0:064x}") is None
    assert cloud.registry.environment("dags", f"{1:064x}") == files
