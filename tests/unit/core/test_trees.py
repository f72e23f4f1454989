"""Removal of what code of others has left, however it has left it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from airbridge.core.sandbox import trees

# More than Python has stack frames, and a path has bytes.
LEVELS = 5_000


def deep(folder: Path, levels: int = LEVELS) -> None:
    """Make directories in one another, each with a file."""
    place = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(place)
        place = inner
    os.close(place)


def test_deep_tree_is_removed(tmp_path: Path) -> None:
    """A tree of any depth, and what lies beside it."""
    left = tmp_path / "left"
    (left / "beside").mkdir(parents=True)
    (left / "beside" / "file").write_text("x")
    deep(left)
    trees.remove(left)
    assert [] == [*tmp_path.iterdir()]


def test_wide_tree_is_removed(tmp_path: Path) -> None:
    """A directory with thousands of directories, each of which has one."""
    left = tmp_path / "left"
    for n in range(2_500):
        (left / str(n) / "inner").mkdir(parents=True)
    trees.remove(left)
    assert [] == [*tmp_path.iterdir()]


def test_links_are_not_followed(tmp_path: Path) -> None:
    """What a link leads to stays, and so does what takes the place of the directory itself."""
    kept, left = tmp_path / "kept", tmp_path / "left"
    (kept / "folder").mkdir(parents=True)
    (left / "inner").mkdir(parents=True)
    for place in (left, left / "inner"):
        (place / "to_folder").symlink_to(kept)
        (place / "to_nothing").symlink_to(tmp_path / "nothing")
        os.mkfifo(place / "fifo")
    trees.remove(left)
    left.symlink_to(kept)
    with pytest.raises(OSError, match="Not a directory"):
        trees.remove(left)
    assert (kept / "folder").is_dir()


def test_closed_directories_are_removed(tmp_path: Path) -> None:
    """Directories that even their owner may not list, enter or change."""
    left = tmp_path / "left"
    for mode in (0o000, 0o500, 0o300):
        inner = left / str(mode) / "inner"
        (inner / "more").mkdir(parents=True)
        (inner / "file").write_text("x")
        inner.chmod(mode)
        inner.parent.chmod(mode)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.chown(tmp_path, 65534, 65534)
                for path, _, files in os.walk(left):
                    os.chown(path, 65534, 65534)
                    for name in files:
                        os.chown(Path(path, name), 65534, 65534)
                folder = os.open(tmp_path, os.O_RDONLY)
                os.fchdir(folder)  # the directories above are root's
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            else:
                os.chdir(tmp_path)
            trees.remove(Path("left"))
            status = 0
        finally:
            os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert not left.exists()


def test_missing_directory_is_removed(tmp_path: Path) -> None:
    """Nothing is to be done, wherever the path ends."""
    trees.remove(tmp_path / "missing")
    trees.remove(tmp_path / "missing" / "inner")


def test_removal_is_given_up(tmp_path: Path) -> None:
    """A removal ends after its time; `discard` does not raise."""
    (tmp_path / "left" / "inner").mkdir(parents=True)
    with pytest.raises(TimeoutError):
        trees.remove(tmp_path / "left", seconds=-1)
    trees.discard(tmp_path / "left", seconds=-1)
    assert (tmp_path / "left").is_dir()


def test_scratch_is_removed(tmp_path: Path) -> None:
    """A scratch directory ends with its block, whatever is in it."""
    with trees.Scratch("x-", tmp_path) as scratch:
        deep(scratch)
    assert [] == [*tmp_path.iterdir()]
