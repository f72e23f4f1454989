from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.integration.bundles.conftest import Processor
from tests.integration.bundles.test_bundle import folder, import_errors
from tests.support.cloud import Cloud
from tests.support.platform import wait_for
from tests.support.wheels import Index

from airbridge.control_plane.dags import Publisher
from airbridge.core.code import environment
from airbridge.core.code.snapshot import pack
from airbridge.core.exceptions import BundleRefused
from airbridge.executor.bundles import bundle as bundles
from airbridge.executor.bundles.check import TreeCheck
from airbridge.executor.bundles.store import BundleStore

DAG = 'import tiny\nfrom airflow.sdk import DAG\n\nwith DAG("uses_tiny", tags=[tiny.VERSION]):\n    pass\n'


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    found = Index(tmp_path / "index")
    found.add("tiny", "1.0")
    found.add("tiny", "2.0")
    monkeypatch.setenv("AIRFLOW__AIRBRIDGE__PACKAGE_INDEX", "none")
    monkeypatch.setenv("AIRFLOW__AIRBRIDGE__PACKAGE_FIND_LINKS", str(found.folder))
    return found


@pytest.fixture(autouse=True)
def _builds_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a build takes longer than the dag-processor waits."""
    monkeypatch.setattr(bundles, "BUILD_PATIENCE_SECONDS", 120.0)


def write(dags: Path, requirements: str) -> None:
    (dags / "one.py").write_text(DAG)
    (dags / "requirements.txt").write_text(requirements)


def key(version: str) -> str:
    return f"bundles/dags/{version.removeprefix('sha256:')}.tar.gz"


def test_environment_is_part_of_version(
    processor: Processor, other_processor: Processor, dags: Path, index: Index
) -> None:
    """A bundle's packages are published to every region, and a change of them alone is a new version.

    The version before keeps its own, on any machine.
    """
    write(dags, "tiny==1.0\n")
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    first, first_path = bundle.get_current_version(), bundle.path
    assert first != pack(dags).version
    archive = environment.version_of(first_path)
    for region in ("us-east-1", "eu-west-1"):
        assert processor.cloud.keys(region) == sorted([key(first), key(archive)])
    packages = environment.beside(first_path)
    assert (packages / "tiny" / "__init__.py").read_text() == 'VERSION = "1.0"\n'

    write(dags, "tiny==2.0\n")
    bundle.refresh()
    assert bundle.get_current_version() != first
    pinned = other_processor.bundle({"kind": "push"}, version=first)
    pinned.initialize()
    assert environment.version_of(pinned.path) == archive
    assert (environment.beside(pinned.path) / "tiny").is_dir()


def test_unbuildable_environment_changes_nothing(processor: Processor, dags: Path, index: Index) -> None:
    """Requirements that cannot be had are an import error by their file, and the version before stays; back again, no index is needed."""
    write(dags, "tiny==1.0\n")
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    first = bundle.get_current_version()
    write(dags, "tiny==1.0\nsqlalchemy>=2\n")
    bundle.refresh()
    assert bundle.get_current_version() == first
    error = import_errors()["requirements.txt (not published)"]
    assert "requirements.txt:2: 'sqlalchemy>=2' conflicts with sqlalchemy==1.4" in error
    for wheel in index.folder.iterdir():
        wheel.unlink()
    write(dags, "tiny==1.0\n")
    bundle.refresh()
    assert bundle.get_current_version() == first
    assert import_errors() == {}


def test_slow_build_goes_on_beside(
    processor: Processor, dags: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dag-processor does not wait for a build: until it is done the version before stays, and an import error says why."""
    write(dags, "tiny==1.0\n")
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    first = bundle.get_current_version()
    monkeypatch.setattr(bundles, "BUILD_PATIENCE_SECONDS", 0.0)
    write(dags, "tiny==2.0\n")
    bundle.refresh()
    assert bundle.get_current_version() == first
    assert bundle.refresh_interval == 0
    assert "requirements.txt: the packages are being locked and built" in str(import_errors())
    (build,) = builds()
    wait_for(
        lambda: bundle.refresh() or bundle.get_current_version() != first, "the version with the build", 60
    )
    assert environment.beside(bundle.path).joinpath("tiny/__init__.py").read_text() == 'VERSION = "2.0"\n'
    assert import_errors() == {}
    assert not build.is_running()


def test_new_requirements_end_a_build(
    processor: Processor, dags: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle builds one environment at a time, the last one asked for; without any version yet, it is empty meanwhile."""
    monkeypatch.setattr(bundles, "BUILD_PATIENCE_SECONDS", 0.0)
    write(dags, "tiny==1.0\n")
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    assert bundle.get_current_version() is None
    assert list(bundle.path.iterdir()) == []
    (first,) = builds()
    write(dags, "tiny==2.0\n")
    bundle.refresh()
    assert not first.is_running()
    assert len(builds()) == 1
    (dags / "requirements.txt").unlink()
    (dags / "one.py").write_text("")
    bundle.refresh()
    assert bundle.get_current_version() is not None
    assert builds() == []


def builds() -> list[psutil.Process]:
    """The running builds of this process."""
    return [
        child
        for child in psutil.Process().children()
        if any("environments._build" in word for word in child.cmdline())
    ]


def test_code_changes_without_index(
    processor: Processor, other_processor: Processor, dags: Path, index: Index
) -> None:
    """A change of the code keeps the environment, also on a machine that never built it and has no index."""
    write(dags, "tiny\n")
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    archive = environment.version_of(bundle.path)
    for wheel in index.folder.iterdir():
        wheel.unlink()
    (dags / "two.py").write_text("import tiny\n")
    other = other_processor.bundle(folder(dags))
    other.initialize()
    other.refresh()
    assert (other.path / "two.py").is_file()
    assert environment.version_of(other.path) == archive


def test_missing_module_has_remedy(processor: Processor, dags: Path, index: Index) -> None:
    """An import that is missing names file, line and module, and where to add it."""
    (dags / "helper.py").write_text("\nimport not_there.sub\n")
    (dags / "one.py").write_text('import helper\n\nfrom airflow.sdk import DAG\n\nDAG("one")\n')
    report = TreeCheck(environment={})("dags", dags)
    (failure,) = report.failures
    assert str(failure).startswith("helper.py:2: ModuleNotFoundError: No module named 'not_there'")
    assert "add the package that has 'not_there' to requirements.txt" in failure.error


def test_own_manifest_is_left_out(processor: Processor, dags: Path, index: Index) -> None:
    """A source cannot name an environment itself: what it has under the reserved name is not published."""
    (dags / ".airbridge").mkdir()
    build = {"python": "3.11", "machine": "x86_64", "version": f"sha256:{'0' * 64}", "bytes": 1}
    manifest = {"v": 1, "inputs": "", "builds": [build], "packages": {}}
    (dags / environment.MANIFEST).write_text(json.dumps(manifest))
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    assert environment.of_tree(bundle.path) is None


def test_lost_environment_is_supplied(processor: Processor, dags: Path, index: Index) -> None:
    """An environment that a region has lost comes back from another region."""
    write(dags, "tiny==1.0\n")
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    archive = environment.version_of(bundle.path)
    region = processor.cloud.catalogue.region("eu-west-1")
    client: Any = processor.cloud.moto.client("s3", region.name)
    client.delete_object(Bucket=region.bundle_bucket, Key=key(archive))
    processor.bundle(folder(dags)).refresh()
    assert key(archive) in processor.cloud.keys("eu-west-1")


def test_pushed_environment(cloud: Cloud, dags: Path, index: Index, tmp_path: Path) -> None:
    """A push is checked with its packages and published with them; one whose packages cannot be had is refused by file and line.

    Nothing of them is imported in the gateway.
    """
    store = BundleStore.of("dags", cloud.catalogue, cloud.registry)
    publish = Publisher(
        lambda _: store, lambda _: None, check=TreeCheck(environment={}), packages=index.settings
    )
    write(dags, "tiny==1.0\n")
    version = publish("dags", pack(dags).compressed(), "ci").version
    assert key(version) in cloud.keys("eu-west-1")
    assert len(cloud.keys("eu-west-1")) == 2
    write(dags, "-e .\n")
    with pytest.raises(BundleRefused, match=r"requirements\.txt:1: '-e \.' is an option"):
        publish("dags", pack(dags).compressed(), "ci")
    assert store.pointer().version == version
    assert "tiny" not in sys.modules
    assert not [path for path in sys.path if Path(path, "tiny").is_dir()]


def test_command_builds_and_compares(
    dags: Path, index: Index, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`airbridge env` builds without a platform, shows digests and packages, and compares two builds; a refusal is exit status 1."""
    from typer.testing import CliRunner

    from airbridge.control_plane.cli.app import build

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(build(), ["env", *words])
        return result.exit_code, result.stdout + capfd.readouterr().out

    for version in ("1.0", "2.0"):
        write(dags, f"tiny=={version}\n")
        code, text = run("build", str(dags), "--out", str(tmp_path / version))
        assert code == 0
        assert f"tiny=={version}" in text
    assert run("show", str(tmp_path / "2.0"))[1] == text
    assert run("diff", str(tmp_path / "1.0"), str(tmp_path / "2.0")) == (0, "tiny 1.0 -> 2.0\n")
    write(dags, "-e .\n")
    assert run("build", str(dags))[0] == 1
