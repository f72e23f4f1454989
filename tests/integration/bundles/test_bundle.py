from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from airflow.exceptions import AirflowException
from tests.integration.bundles.conftest import Processor
from tests.support.cloud import REGIONS, Cloud, write_dag

from airbridge.core.code.snapshot import Snapshot, pack
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.bundles.store import BundleStore


def folder(path: Path) -> dict[str, Any]:
    return {"kind": "folder", "path": str(path)}


def broken(path: Path) -> None:
    path.write_text("from airflow.sdk import DAG\n\nwith DAG(undefined):\n    pass\n")


def shown_files(bundle: Any) -> list[str]:
    return sorted(path.relative_to(bundle.path).as_posix() for path in bundle.path.rglob("*.py"))


def import_errors() -> dict[str, str]:
    from airflow.models.errors import ParseImportError
    from airflow.utils.session import create_session

    with create_session() as session:
        return {row.filename: row.stacktrace for row in session.query(ParseImportError)}


def test_folder_is_published_by_its_digest(processor: Processor, dags: Path) -> None:
    """A new folder becomes a version that is in every region, and is what Airflow is shown."""
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    assert bundle.get_current_version() == pack(dags).version
    assert shown_files(bundle) == ["one.py"]
    digits = pack(dags).version.removeprefix("sha256:")
    assert processor.cloud.keys("eu-west-1") == [f"bundles/dags/{digits}.tar.gz"]
    assert processor.cloud.keys("us-east-1") == [f"bundles/dags/{digits}.tar.gz"]


def test_change_adds_new_version(processor: Processor, dags: Path) -> None:
    """A changed folder is a new version at a new path; the old one stays, for runs that are pinned to it."""
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    old_version, old_path = bundle.get_current_version(), bundle.path
    write_dag(dags, "two.py", "two")
    bundle.refresh()
    assert bundle.get_current_version() == pack(dags).version != old_version
    assert shown_files(bundle) == ["one.py", "two.py"]
    assert [path.name for path in old_path.glob("*.py")] == ["one.py"]


def test_nothing_changes_without_a_change(processor: Processor, dags: Path) -> None:
    """A refresh of an unchanged folder publishes nothing, though files were touched."""
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    before = processor.cloud.store().pointer()
    (dags / "one.py").touch()
    bundle.refresh()
    processor.bundle(folder(dags)).initialize()
    assert processor.cloud.store().pointer() == before


def test_pinned_version_is_fetched_anywhere(
    processor: Processor, other_processor: Processor, dags: Path
) -> None:
    """A machine that never saw the folder gets a version by its digest, also after newer ones came."""
    first = processor.bundle(folder(dags))
    first.initialize()
    version = first.get_current_version()
    write_dag(dags, "two.py", "two")
    first.refresh()

    pinned = other_processor.bundle({"kind": "push"}, version=version)
    pinned.initialize()
    assert pinned.get_current_version() == version
    assert shown_files(pinned) == ["one.py"]
    with pytest.raises(AirflowException, match="never changes"):
        pinned.refresh()


def test_pinned_path_needs_no_initialize(
    processor: Processor, other_processor: Processor, dags: Path
) -> None:
    """Airflow reads the path of a callback's bundle without initialising it: the code is there
    nevertheless.
    """
    processor.bundle(folder(dags)).initialize()
    pinned = other_processor.bundle({"kind": "push"}, version=pack(dags).version)
    assert (pinned.path / "one.py").exists()


def test_unknown_version_path_does_not_raise(processor: Processor) -> None:
    """A version that cannot be had is a path without files there, and an error when initialised."""
    pinned = processor.bundle({"kind": "push"}, version="sha256:" + "0" * 64)
    assert not pinned.path.exists()
    with pytest.raises(AirflowException, match="cannot be fetched"):
        pinned.initialize()


def test_broken_file_keeps_previous_version(processor: Processor, dags: Path) -> None:
    """A snapshot that does not parse is not published, and the UI shows the file, the place and the reason,
    until it is fixed.
    """
    bundle = processor.bundle(folder(dags), refuse_broken=True)
    bundle.initialize()
    good = bundle.get_current_version()
    broken(dags / "two.py")
    bundle.refresh()
    assert bundle.get_current_version() == good
    assert shown_files(bundle) == ["one.py"]
    expected = {"two.py (not published)": "two.py:3: NameError: name 'undefined' is not defined"}
    assert import_errors() == expected

    processor.bundle(folder(dags), refuse_broken=True).refresh()
    assert import_errors() == expected  # reported again by a restarted dag-processor

    write_dag(dags, "two.py", "two")
    bundle.refresh()
    assert shown_files(bundle) == ["one.py", "two.py"]
    assert import_errors() == {}


def test_undoing_the_break_clears_the_error(processor: Processor, dags: Path) -> None:
    """Going back to the published content clears the error without a new version."""
    bundle = processor.bundle(folder(dags), refuse_broken=True)
    bundle.initialize()
    broken(dags / "two.py")
    bundle.refresh()
    (dags / "two.py").unlink()
    bundle.refresh()
    assert import_errors() == {}


def test_broken_from_the_start(processor: Processor, dags: Path) -> None:
    """With nothing published yet and a folder that does not parse there is an empty bundle, not a dead dag-processor."""
    broken(dags / "one.py")
    bundle = processor.bundle(folder(dags), refuse_broken=True)
    bundle.initialize()
    assert bundle.get_current_version() is None
    assert shown_files(bundle) == []
    assert list(import_errors()) == ["one.py (not published)"]


def test_broken_file_can_be_let_through(processor: Processor, dags: Path) -> None:
    """With refuse_broken off a broken file is published like any other, and is Airflow's to report."""
    broken(dags / "two.py")
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    assert shown_files(bundle) == ["one.py", "two.py"]


def test_two_processors_agree(processor: Processor, other_processor: Processor, dags: Path) -> None:
    """A version that one dag-processor publishes is shown by the other, from the same folder or another."""
    one, two = processor.bundle(folder(dags)), other_processor.bundle(folder(dags))
    one.initialize()
    two.initialize()
    write_dag(dags, "two.py", "two")
    two.refresh()
    one.refresh()
    assert one.get_current_version() == two.get_current_version() == pack(dags).version


def test_rolling_deployment_publishes_once(
    processor: Processor, other_processor: Processor, dags: Path, tmp_path: Path
) -> None:
    """In a rolling deployment the newcomer's code wins once; the old folder does not put its own back, even after a restart."""
    newer = tmp_path / "newer"
    shutil.copytree(dags, newer)
    write_dag(newer, "two.py", "two")
    old, new = processor.bundle(folder(dags)), other_processor.bundle(folder(newer))
    old.initialize()
    new.initialize()
    new.refresh()
    for _ in range(3):
        old.refresh()
        new.refresh()
    restarted = processor.bundle(folder(dags))
    restarted.initialize()
    restarted.refresh()
    expected = pack(newer).version
    assert {each.get_current_version() for each in (old, new, restarted)} == {expected}

    write_dag(dags, "three.py", "three")
    old.refresh()
    new.refresh()
    assert old.get_current_version() == new.get_current_version() == pack(dags).version


class RacedStore(BundleStore):
    """A store where another publisher is always a moment faster, once."""

    rival: Snapshot | None = None

    def publish(self, snapshot: Snapshot, actor: str, seen: Any, **kwargs: Any) -> Any:
        if self.rival is not None:
            rival, self.rival = self.rival, None
            super().publish(rival, "rival", seen)
        return super().publish(snapshot, actor, seen, **kwargs)


def test_lost_race_is_looked_at_again(processor: Processor, dags: Path, tmp_path: Path) -> None:
    """The loser of a race shows the winner's version, and publishes its own change at the next refresh if it still stands."""
    store = RacedStore.of("dags", processor.cloud.catalogue, processor.cloud.registry)
    assert isinstance(store, RacedStore)
    bundle = processor.bundle(folder(dags), store=store)
    bundle.initialize()
    write_dag(tmp_path / "rival", "rival.py", "rival")
    store.rival = pack(tmp_path / "rival")
    write_dag(dags, "two.py", "two")
    bundle.refresh()
    assert shown_files(bundle) == ["rival.py"]
    bundle.refresh()
    assert shown_files(bundle) == ["one.py", "two.py"]


def test_home_region_down(processor: Processor, dags: Path) -> None:
    """With the home region out of reach, refreshes and restarts go on with what was shown last; a first start cannot."""
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    version = bundle.get_current_version()
    for region in REGIONS:
        _drop_buckets(processor.cloud, region)
    write_dag(dags, "two.py", "two")
    bundle.refresh()
    restarted = processor.bundle(folder(dags))
    restarted.initialize()
    restarted.refresh()
    assert bundle.get_current_version() == restarted.get_current_version() == version
    assert shown_files(restarted) == ["one.py"]

    shutil.rmtree(processor.disk)
    with pytest.raises(AirflowException, match="cannot be fetched"):
        processor.bundle(folder(dags)).initialize()


def _drop_buckets(cloud: Cloud, region: str) -> None:
    found = cloud.catalogue.region(region)
    assert found is not None
    s3 = cloud.moto.client("s3", region)
    for key in cloud.keys(region):
        s3.delete_object(Bucket=found.bundle_bucket, Key=key)
    s3.delete_bucket(Bucket=found.bundle_bucket)


def test_folder_gone(processor: Processor, dags: Path) -> None:
    """A folder that disappears (an unmounted volume) does not take the published code with it."""
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    shutil.rmtree(dags)
    bundle.refresh()
    assert shown_files(bundle) == ["one.py"]


def test_push_bundle_follows_pushes(processor: Processor, dags: Path) -> None:
    """A push bundle is empty until the first push, and then shows the latest one."""
    bundle = processor.bundle({"kind": "push"})
    bundle.initialize()
    assert bundle.get_current_version() is None
    assert shown_files(bundle) == []
    store = processor.cloud.store()
    store.publish(pack(dags), "ci", store.pointer())
    bundle.refresh()
    assert shown_files(bundle) == ["one.py"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "kind"),
        ({"kind": "ftp"}, "kind"),
        ({"kind": "folder"}, r"source\.path: Field required"),
        ({"kind": "folder", "path": "dags"}, "absolute"),
        ({"kind": "folder", "path": "/x", "ref": "y"}, r"source\.ref"),
        ({"kind": "git", "repo_url": "--upload-pack=evil"}, "hyphen"),
        ({"kind": "git", "repo_url": "x", "ref": "--option"}, "hyphen"),
        ({"kind": "git", "repo_url": "x", "subdir": "../.."}, "inside the repository"),
    ],
)
def test_wrong_source_is_explained(processor: Processor, source: dict[str, Any], message: str) -> None:
    """A wrong source is an error that names the bundle, the field and the three forms there are."""
    with pytest.raises(ConfigurationError, match=rf"(?s)bundle 'dags'.*{message}.*expected"):
        processor.bundle(source)


def test_what_is_shown_is_never_evicted(processor: Processor, dags: Path) -> None:
    """However many versions come to the machine, the one the dag-processor works on stays."""
    bundle = processor.bundle(folder(dags), max_versions=1)
    bundle.initialize()
    shown = bundle.get_current_version()
    assert shown is not None
    assert bundle._in_use(shown)
    os.utime(bundle.path, (1, 1))
    write_dag(dags, "two.py", "two")
    assert bundle._cache.get(pack(dags).version, lambda path: path.mkdir()).is_dir()
    assert bundle._cache.path(shown).is_dir()
