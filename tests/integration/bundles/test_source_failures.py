"""Failures of a bundle's source: each is an import error in the UI, and what is good is served if that is allowed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from airflow.exceptions import AirflowException
from tests.integration.bundles.conftest import Processor
from tests.integration.bundles.test_bundle import _drop_buckets, folder, import_errors, shown_files
from tests.support.cloud import REGIONS, write_dag

from airbridge.core.code.snapshot import DEFAULT_LIMITS, pack
from airbridge.executor._airflow import report_import_errors

NOT_PUBLISHED = " (not published)"


def linked_directory(dags: Path) -> None:
    (dags / "bad").symlink_to("/usr/share")


def outward_link(dags: Path) -> None:
    (dags / "bad").symlink_to("/etc/hostname")


def dangling_link(dags: Path) -> None:
    (dags / "bad").symlink_to("nowhere.py")


def endless_link(dags: Path) -> None:
    (dags / "bad").symlink_to("bad")


def large_file(dags: Path) -> None:
    with (dags / "bad").open("wb") as file:
        file.truncate(DEFAULT_LIMITS.file_bytes + 1)


def fifo(dags: Path) -> None:
    os.mkfifo(dags / "bad")


def foreign_name(dags: Path) -> None:
    Path(os.fsdecode(os.fsencode(dags) + b"/bad\xff.py")).write_text("")


def foreign_directory(dags: Path) -> None:
    Path(os.fsdecode(os.fsencode(dags) + b"/bad\xff")).mkdir()


BAD = pytest.mark.parametrize(
    ("spoil", "file", "says"),
    [
        (linked_directory, "bad", "link to a directory (/usr/share): a snapshot holds files only; copy"),
        (outward_link, "bad", "leads out of the folder, to /etc/hostname: copy the file in"),
        (dangling_link, "bad", "link to nowhere.py, which does not exist: remove the link"),
        (endless_link, "bad", "which does not exist: remove the link"),
        (
            large_file,
            "bad",
            f"a file of DAG code has at most {DEFAULT_LIMITS.file_bytes}; move it to a bucket",
        ),
        (fifo, "bad", "not a regular file but a fifo: a snapshot holds files only; remove it"),
        (foreign_name, r"bad\xff.py", "a name that is not UTF-8: rename it"),
        (foreign_directory, r"bad\xff", "a name that is not UTF-8: rename it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)


@BAD
def test_bad_entry_is_left_out(
    processor: Processor, dags: Path, spoil: Callable[[Path], None], file: str, says: str
) -> None:
    """With refuse_broken off everything else is published, also later changes; the UI names the entry and the remedy until it is gone."""
    spoil(dags)
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    write_dag(dags, "two.py", "two")
    bundle.refresh()
    assert shown_files(bundle) == ["one.py", "two.py"]
    ((name, text),) = import_errors().items()
    assert name == f"{file}{NOT_PUBLISHED}"
    assert text.startswith(f"{file}: ")
    assert says in text

    for entry in dags.glob("bad*"):
        entry.rmdir() if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    bundle.refresh()
    assert import_errors() == {}


@BAD
def test_bad_entry_refuses_snapshot(
    processor: Processor, dags: Path, spoil: Callable[[Path], None], file: str, says: str
) -> None:
    """With refuse_broken on the previous version stays, and the UI names the entry and the remedy."""
    bundle = processor.bundle(folder(dags), refuse_broken=True)
    bundle.initialize()
    good = bundle.get_current_version()
    spoil(dags)
    write_dag(dags, "two.py", "two")
    for _ in range(2):
        bundle.refresh()
        assert bundle.get_current_version() == good
        assert [says in text for text in import_errors().values()] == [True]


def test_refused_is_published_when_repaired(processor: Processor, dags: Path) -> None:
    """Once the refused entry is gone, what changed meanwhile is published and the error goes."""
    bundle = processor.bundle(folder(dags), refuse_broken=True)
    bundle.initialize()
    fifo(dags)
    write_dag(dags, "two.py", "two")
    bundle.refresh()
    (dags / "bad").unlink()
    bundle.refresh()
    assert shown_files(bundle) == ["one.py", "two.py"]
    assert import_errors() == {}


def test_error_of_deleted_file_vanishes(processor: Processor, dags: Path) -> None:
    """An error of a file that is deleted goes, also while the folder has another fault, and after a restart."""
    (dags / "two.py").write_text("from airflow.sdk import DAG\nundefined\n")
    bundle = processor.bundle(folder(dags), refuse_broken=True)
    bundle.initialize()
    assert list(import_errors()) == [f"two.py{NOT_PUBLISHED}"]
    fifo(dags)
    (dags / "two.py").unlink()
    bundle.refresh()
    assert list(import_errors()) == [f"bad{NOT_PUBLISHED}"]
    shutil.rmtree(dags)
    restarted = processor.bundle(folder(dags), refuse_broken=True)
    with pytest.raises(AirflowException, match="is not a directory"):
        restarted.initialize()
    assert list(import_errors()) == [f"folder {dags}{NOT_PUBLISHED}"]


def test_missing_folder_is_an_import_error(processor: Processor, dags: Path) -> None:
    """A folder that is not there, at the first start or later, is an import error with the folder's name."""
    expected = {f"folder {dags}{NOT_PUBLISHED}": f"folder {dags}: the DAG folder {dags} is not a directory"}
    bundle = processor.bundle(folder(dags))
    away = dags.with_name("away")
    dags.rename(away)
    with pytest.raises(AirflowException):
        bundle.initialize()
    assert import_errors() == expected
    away.rename(dags)
    bundle.initialize()
    assert import_errors() == {}
    dags.rename(away)
    bundle.refresh()
    assert import_errors() == expected
    assert shown_files(bundle) == ["one.py"]


def test_git_failure_is_an_import_error(processor: Processor, tmp_path: Path) -> None:
    """A repository that cannot be fetched is an import error with its URL, without credentials."""
    url = f"file://user:secret@{tmp_path}/nowhere.git"
    bundle = processor.bundle({"kind": "git", "repo_url": url})
    with pytest.raises(AirflowException):
        bundle.initialize()
    ((name, text),) = import_errors().items()
    assert name == f"git file://***@{tmp_path}/nowhere.git main{NOT_PUBLISHED}"
    assert "git fetch failed" in text
    assert "secret" not in text


def test_unreachable_store_is_an_import_error(processor: Processor, dags: Path) -> None:
    """A change that cannot be published for want of the home region is an import error, too."""
    bundle = processor.bundle(folder(dags))
    bundle.initialize()
    for region in REGIONS:
        _drop_buckets(processor.cloud, region)
    write_dag(dags, "two.py", "two")
    bundle.refresh()
    ((name, text),) = import_errors().items()
    assert name == f"folder {dags}{NOT_PUBLISHED}"
    assert "cannot be published" in text


def test_error_is_shown_again_soon(processor: Processor, dags: Path) -> None:
    """Airflow drops the errors after a refresh with a new version: the next refresh, which reports them again, comes at once."""
    bundle = processor.bundle(folder(dags), refresh_interval=300)
    fifo(dags)
    bundle.initialize()
    intervals = []
    for _ in range(3):
        intervals.append(bundle.refresh_interval)
        report_import_errors("dags", {})
        bundle.refresh()
        assert list(import_errors()) == [f"bad{NOT_PUBLISHED}"]
    assert (intervals, bundle.refresh_interval) == ([0, 0, 300], 300)


def test_version_out_of_reach_waits_for_the_interval(processor: Processor, dags: Path) -> None:
    """A new version is refreshed to at once; one that cannot be fetched not again before the interval is over."""
    store = processor.cloud.store()
    store.publish(pack(dags), "ci", store.pointer())
    bundle = processor.bundle({"kind": "push"}, refresh_interval=300)
    bundle.initialize()
    bundle.refresh()
    assert bundle.refresh_interval == 300
    write_dag(dags, "two.py", "two")
    store.publish(pack(dags), "ci", store.pointer())
    assert bundle.refresh_interval == 0
    for region in REGIONS:
        _drop_buckets(processor.cloud, region)
    for _ in range(3):
        bundle.refresh()
    assert bundle.refresh_interval == 300
    assert shown_files(bundle) == ["one.py"]
