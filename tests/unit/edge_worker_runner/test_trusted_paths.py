"""Places that the worker executes code from, and tasks could write to."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from airbridge.edge_worker.runner.sandbox.trusted_paths import changeable, trusted

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of several users")


def owned(path: Path, uid: int, mode: int = 0o755) -> Path:
    path.mkdir(parents=True)
    os.chown(path, uid, uid)
    path.chmod(mode)
    return path


@pytest.fixture
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that only root can write to, and all above it."""
    return tmp_path_factory.mktemp("root")


def test_own_and_open_places_are_found(root: Path) -> None:
    """What the user owns or everybody may write to, what is beneath it, and what is missing there."""
    closed, own = owned(root / "closed", 0), owned(root / "own", NOBODY)
    shared = owned(root / "shared", 0, 0o1777)
    inner = owned(own / "inner", 0)
    paths = [closed, own, inner, shared, own / "missing" / "config", closed / "missing"]
    assert [own, inner, shared] == changeable(paths, NOBODY, hidden=())


def test_sticky_directory_protects_entries(root: Path) -> None:
    """A directory such as /tmp lets nobody replace what others have in it."""
    inner = owned(owned(root / "shared", 0, 0o1777) / "inner", 0)
    assert [] == changeable([inner], NOBODY, hidden=())


def test_hidden_places_are_closed(root: Path) -> None:
    """What is hidden from tasks is not theirs to change."""
    state = owned(root / "state", NOBODY)
    assert [] == changeable([state / ".aws" / "config"], NOBODY, hidden=[state])


def test_trusted_files_are_named() -> None:
    """The import path, and the files of AWS where variables or HOME lead."""
    found = {*trusted({"HOME": "/home/x", "AWS_CONFIG_FILE": "/etc/aws"})}
    assert {Path("/etc/aws"), Path("/home/x/.aws/credentials")} <= found
    assert {Path(each) for each in sys.path if each} <= found
