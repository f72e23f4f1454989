"""Sources of a bundle's DAG code: a folder, a Git repository, or pushes. Imports no Airflow.

A source answers two questions: "has it changed since this mark?" cheaply, and "which directory is it now?".
`source_of` reads one from a bundle's ``source`` argument::

    {"kind": "folder", "path": "/srv/dags"}
    {"kind": "git", "repo_url": "https://git.example.com/dags.git", "ref": "main", "subdir": "dags"}
    {"kind": "push"}
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from airbridge.core.code.snapshot import fingerprint
from airbridge.core.exceptions import BundleError, ConfigurationError

GIT_SECONDS = 120.0
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True)
class SourceState:
    """A source as it is now: `mark` stays equal while the code does, `root` is the directory that holds it."""

    mark: str
    root: Path


class _Source(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FolderSource(_Source):
    """A directory on the dag-processor's machine."""

    kind: Literal["folder"]
    path: Path

    @field_validator("path")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        path = path.expanduser()
        if not path.is_absolute():
            raise ValueError("must be an absolute path")
        return path

    @property
    def actor(self) -> str:
        """Publisher, as recorded with each version."""
        return f"folder {self.path}"

    def look(self, scratch: Path) -> SourceState:  # noqa: ARG002 - a folder needs no room of its own
        """The folder itself."""
        if not self.path.is_dir():
            raise BundleError(f"the DAG folder {self.path} is not a directory")
        root = self.path.resolve()
        return SourceState(fingerprint(root), root)


class GitSource(_Source):
    """A Git repository at a branch, tag or commit; `subdir` is the directory in it that holds the DAGs.

    Credentials are Git's own business: a credential helper, an SSH agent or key, or the URL.
    """

    kind: Literal["git"]
    repo_url: str
    ref: str = "main"
    subdir: str = ""

    @field_validator("repo_url", "ref")
    @classmethod
    def _no_option(cls, value: str) -> str:
        if not value or value.startswith("-") or any(char.isspace() for char in value):
            raise ValueError("must not be empty, begin with a hyphen or hold white space")
        return value

    @field_validator("subdir")
    @classmethod
    def _inside(cls, subdir: str) -> str:
        path = PurePosixPath(subdir)
        if path.is_absolute() or ".." in path.parts or ".git" in path.parts:
            raise ValueError("must be a relative path inside the repository")
        return subdir

    @property
    def actor(self) -> str:
        """Publisher, as recorded with each version: the URL without credentials."""
        return f"git {redact(self.repo_url)} {self.ref}"

    def look(self, scratch: Path) -> SourceState:
        """Fetch the ref and check it out under `scratch`, which must be this source's alone and is kept between looks."""
        repository, tree = scratch / "git", scratch / "tree"
        if not (repository / "HEAD").exists():
            _git(None, "init", "--quiet", "--bare", "--template=", str(repository))
        _git(
            repository,
            "fetch",
            "--quiet",
            "--depth=1",
            "--no-tags",
            "--end-of-options",
            self.repo_url,
            self.ref,
        )
        commit = _git(repository, "rev-parse", "FETCH_HEAD^{commit}").strip()
        tree.mkdir(parents=True, exist_ok=True)
        _git(repository, f"--work-tree={tree}", "read-tree", "--reset", "-u", commit)
        _git(repository, f"--work-tree={tree}", "clean", "--quiet", "-ffdx")
        root = (tree / self.subdir).resolve()
        if not root.is_dir() or not root.is_relative_to(tree.resolve()):
            raise BundleError(f"{redact(self.repo_url)} at {self.ref} has no directory {self.subdir!r}")
        return SourceState(f"{commit} {self.subdir}", root)


class PushSource(_Source):
    """Nothing to look at: versions are pushed through the gateway (`airbridge dags push`)."""

    kind: Literal["push"]


Source = FolderSource | GitSource | PushSource
_SOURCE: TypeAdapter[Source] = TypeAdapter(Annotated[Source, Field(discriminator="kind")])


def source_of(bundle: str, source: Mapping[str, Any]) -> Source:
    """Read a bundle's ``source`` argument. Raises `ConfigurationError` naming what is wrong and what would be right."""
    try:
        return _SOURCE.validate_python(dict(source))
    except (ValidationError, TypeError, ValueError) as error:
        detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in ("source", *detail["loc"][1:]))
        raise ConfigurationError(
            f"[dag_processor] dag_bundle_config_list: bundle {bundle!r}: {where}: {detail['msg']}; "
            'expected {"kind": "folder", "path": ...}, {"kind": "git", "repo_url": ..., "ref": ..., "subdir": ...} '
            'or {"kind": "push"}'
        ) from error


def redact(text: str) -> str:
    """Take the credentials out of the URLs in a text."""
    return _URL_CREDENTIALS.sub("***@", text)


def _git(repository: Path | None, *arguments: str) -> str:
    """Run git, without prompts and hooks. Raises `BundleError` with git's message, credentials removed."""
    where = [] if repository is None else [f"--git-dir={repository}"]
    command = ["git", "-c", "core.hooksPath=/dev/null", "-c", "core.symlinks=true", *where, *arguments]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - arguments are validated, and no shell is involved
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_SECONDS,
            check=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise BundleError("a bundle from Git needs the git command on PATH") from error
    except subprocess.TimeoutExpired as error:
        raise BundleError(
            f"git {_verb(arguments)} took longer than {GIT_SECONDS:g} s", transient=True
        ) from error
    except subprocess.CalledProcessError as error:
        message = redact(error.stderr.strip()) or f"exit code {error.returncode}"
        raise BundleError(f"git {_verb(arguments)} failed: {message}", transient=True) from None
    return done.stdout


def _verb(arguments: tuple[str, ...]) -> str:
    return next(argument for argument in arguments if not argument.startswith("-"))
