from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from airbridge.core.code.snapshot import pack
from airbridge.core.exceptions import BundleError
from airbridge.executor.bundles.source import GitSource, redact, source_of


class Repository:
    """A Git repository on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        identity = {
            f"GIT_{who}_{what}": "test@example.com"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        done = subprocess.run(
            ["git", "-C", str(self.path), *arguments],
            env={**os.environ, **identity},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, name: str, content: str) -> str:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", f"change {name}")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    repository.commit("dags/one.py", "ONE = 1\n")
    return repository


def source(repository: Repository, **fields: Any) -> GitSource:
    found = source_of("dags", {"kind": "git", "repo_url": str(repository.path), **fields})
    assert isinstance(found, GitSource)
    return found


def test_branch_is_followed(repository: Repository, tmp_path: Path) -> None:
    """Each look sees the branch as it is then: files come, change and go; the mark changes with them."""
    branch = source(repository)
    scratch = tmp_path / "scratch"
    first = branch.look(scratch)
    assert [path.name for path in first.root.rglob("*.py")] == ["one.py"]
    repository.commit("dags/two.py", "TWO = 2\n")
    (repository.path / "dags/one.py").unlink()
    repository.commit("dags/two.py", "TWO = 22\n")
    second = branch.look(scratch)
    assert {path.name: path.read_text() for path in second.root.rglob("*.py")} == {"two.py": "TWO = 22\n"}
    assert first.mark != second.mark
    assert branch.look(scratch).mark == second.mark


def test_subdir_and_tag(repository: Repository, tmp_path: Path) -> None:
    """A tag stays where it is, and a subdirectory is the root of the snapshot, without the rest of the repository."""
    repository.git("tag", "v1")
    repository.commit("README.md", "text")
    look = source(repository, ref="v1", subdir="dags").look(tmp_path / "scratch")
    assert [path.name for path in look.root.iterdir()] == ["one.py"]
    (tmp_path / "same").mkdir()
    (tmp_path / "same" / "one.py").write_text("ONE = 1\n")
    assert pack(look.root).version == pack(tmp_path / "same").version


def test_commit_id_is_a_ref(repository: Repository, tmp_path: Path) -> None:
    """A full commit id is a ref, too."""
    commit = repository.commit("dags/two.py", "TWO = 2\n")
    repository.commit("dags/three.py", "THREE = 3\n")
    look = source(repository, ref=commit, subdir="dags").look(tmp_path / "scratch")
    assert sorted(path.name for path in look.root.iterdir()) == ["one.py", "two.py"]


def test_rewritten_branch(repository: Repository, tmp_path: Path) -> None:
    """A forced push is followed like any other change."""
    branch = source(repository)
    repository.commit("dags/two.py", "TWO = 2\n")
    branch.look(tmp_path / "scratch")
    repository.git("reset", "--quiet", "--hard", "HEAD~1")
    look = branch.look(tmp_path / "scratch")
    assert [path.name for path in look.root.rglob("*.py")] == ["one.py"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ref": "nosuch"}, "nosuch"),
        ({"subdir": "nosuch"}, "has no directory 'nosuch'"),
        ({"repo_url": "/no/such/repository"}, "/no/such/repository"),
    ],
)
def test_what_is_not_there_is_named(
    repository: Repository, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    """A wrong ref, directory or URL is an error that names it."""
    with pytest.raises(BundleError, match=message):
        source(repository, **fields).look(tmp_path / "scratch")


def test_subdir_that_leads_out_is_refused(repository: Repository, tmp_path: Path) -> None:
    """A repository cannot have the machine's files published by a link in place of its directory."""
    (repository.path / "etc").symlink_to("/etc")
    repository.commit("x", "x")
    with pytest.raises(BundleError, match="has no directory 'etc'"):
        source(repository, subdir="etc").look(tmp_path / "scratch")


def test_hooks_do_not_run(repository: Repository, tmp_path: Path) -> None:
    """Nothing of a repository runs on the dag-processor while it is fetched."""
    branch = source(repository)
    branch.look(tmp_path / "scratch")
    hook = tmp_path / "scratch" / "git" / "hooks" / "post-checkout"
    hook.parent.mkdir(parents=True, exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    repository.commit("dags/two.py", "TWO = 2\n")
    branch.look(tmp_path / "scratch")
    assert not (tmp_path / "ran").exists()


def test_credentials_are_not_shown(tmp_path: Path) -> None:
    """A URL's credentials are in no error and no record."""
    secret = "https://user:hunter2@127.0.0.1:1/dags.git"
    found = source_of("dags", {"kind": "git", "repo_url": secret})
    assert isinstance(found, GitSource)
    assert "hunter2" not in found.actor
    with pytest.raises(BundleError) as caught:
        found.look(tmp_path / "scratch")
    assert "hunter2" not in str(caught.value)
    assert redact(secret) == "https://***@127.0.0.1:1/dags.git"
