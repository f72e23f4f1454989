"""What GitHub keeps of a repository: branches, variables and secrets by environment, artifacts; and the actions, as done here."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

NAME: Final = "airbridge/airbridge"
TOKEN: Final = "ghs_of_this_run"


class StepFailed(Exception):  # noqa: N818 - what happened to the step
    """A step did not succeed; the text says why."""


@dataclass
class Hub:
    """One repository, bare, and its settings.

    `variables` and `secrets` are by environment; those of ``""`` are the repository's. `path` comes before the machine's PATH, `machine` are
    variables that every step has. `restore` puts into a checkout what a cache would, and `assume` returns the variables of a role's credentials,
    by role, region, seconds and the subject of the job's token.
    """

    repository: Path
    work: Path
    variables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    path: Sequence[Path] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    restore: Callable[[Path], None] = lambda _: None
    assume: Callable[[str, str, int, str], Mapping[str, str]] = lambda *_: {}
    event: Mapping[str, Any] = field(default_factory=dict)
    ref: str = "refs/heads/main"
    #: The commit of the event that started the workflow; it stays the same, whatever the branch does meanwhile.
    commit: str = ""
    _machines: Iterator[int] = field(default_factory=itertools.count)

    def new_machine(self, job: str) -> Path:
        """Return the folder of a new job's machine."""
        return self.work / f"{next(self._machines)}-{job}"

    @property
    def artifacts(self) -> Path:
        """The folder of artifacts, each a folder by its name."""
        return self.work / "artifacts"

    @property
    def revision(self) -> str:
        """The branch's commit."""
        command = ("git", "-C", str(self.repository), "rev-parse", self.ref)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def of(self, settings: Mapping[str, Mapping[str, str]], environment: str) -> dict[str, str]:
        """Return the repository's settings, with an environment's in front of them."""
        return {**settings.get("", {}), **settings.get(environment, {})}


@dataclass
class Machine:
    """A hosted runner's machine, for one job. `environment` grows by what actions set."""

    hub: Hub
    folder: Path
    permissions: Mapping[str, str]
    workflow: str = ""
    deployment_environment: str = ""
    labels: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in (self.workspace, self.temp, self.home):
            path.mkdir(parents=True)
        path = os.pathsep.join([*map(str, self.hub.path), os.environ["PATH"]])
        self.environment |= {
            "PATH": path,
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_ACTOR": "mona",
            "GITHUB_REPOSITORY": NAME,
            "GITHUB_REF": self.hub.ref,
            "GITHUB_SHA": self.hub.commit or self.hub.revision,
            "GITHUB_WORKFLOW_REF": f"{NAME}/.github/workflows/{self.workflow}@{self.hub.ref}",
            "RUNNER_ARCH": "ARM64" if self.labels.endswith("-arm") else "X64",
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temp),
            "GIT_TERMINAL_PROMPT": "0",
            **self.hub.machine,
        }
        self._configure_git()

    @property
    def subject(self) -> str:
        """The subject of the job's OpenID Connect token."""
        where = (
            f"environment:{self.deployment_environment}"
            if self.deployment_environment
            else f"ref:{self.hub.ref}"
        )
        return f"repo:{NAME}:{where}"

    @property
    def workspace(self) -> Path:
        """Where the repository is checked out."""
        return self.folder / "workspace"

    @property
    def temp(self) -> Path:
        """A directory that is empty at the job's start."""
        return self.folder / "temp"

    @property
    def home(self) -> Path:
        """The user's home, of this job alone."""
        return self.folder / "home"

    def act(self, action: str, given: Mapping[str, str]) -> None:
        """Do what an action does. Raises `StepFailed`."""
        name = action.partition("@")[0]
        if name not in _ACTIONS:
            raise StepFailed(f"the action {name} is not known here")
        _ACTIONS[name](self, given)

    def _configure_git(self) -> None:
        """Let the token's address, and no other, push: to read, a checkout goes to the repository itself."""
        if self.permissions.get("contents") == "write":
            address = f"https://x-access-token:{TOKEN}@github.com/{NAME}.git"
            config = f'[url "{self.hub.repository}"]\n\tinsteadOf = {address}\n'
            (self.home / ".gitconfig").write_text(config)

    def checkout(self, given: Mapping[str, str]) -> None:
        """Clone the branch at the event's commit, one commit deep unless all are asked for."""
        if self.permissions.get("contents") not in {"read", "write"}:
            raise StepFailed("a checkout needs the permission contents: read")
        depth = given.get("fetch-depth", "1")
        deep = () if depth == "0" else ("--depth", depth)
        branch = self.hub.ref.removeprefix("refs/heads/")
        there, here = self.environment["GITHUB_SHA"], ("-C", str(self.workspace))
        self.git("init", "--quiet", str(self.workspace))
        self.git(*here, "remote", "add", "origin", f"https://github.com/{NAME}.git")
        self.git(*here, "fetch", "--quiet", *deep, f"file://{self.hub.repository}", there)
        self.git(*here, "checkout", "--quiet", "-B", branch, there)
        self.hub.restore(self.workspace)

    def git(self, *words: str) -> None:
        """Run Git. Raises `StepFailed`."""
        done = subprocess.run(
            ["git", *words], check=False, capture_output=True, text=True, env=self.environment
        )
        if done.returncode:
            raise StepFailed(done.stderr)

    def upload(self, given: Mapping[str, str]) -> None:
        """Keep files as an artifact."""
        target = self.hub.artifacts / given["name"]
        paths = [path for pattern in given["path"].split() for path in self.workspace.glob(pattern)]
        if not paths and given.get("if-no-files-found") == "error":
            raise StepFailed(f"there is nothing at {given['path']}")
        for path in paths:
            # As the action has it: below the last directory that all paths share.
            inside = "" if path.is_dir() and len(given["path"].split()) == 1 else path.name
            copy = shutil.copytree if path.is_dir() else shutil.copy2
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            copy(path, target / inside, **({"dirs_exist_ok": True} if path.is_dir() else {}))

    def download(self, given: Mapping[str, str]) -> None:
        """Take an artifact, or all of them merged."""
        names = (
            [given["name"]] if "name" in given else sorted(path.name for path in self.hub.artifacts.iterdir())
        )
        for name in names:
            if not (self.hub.artifacts / name).is_dir():
                raise StepFailed(f"there is no artifact {name!r}")
            shutil.copytree(
                self.hub.artifacts / name, self.workspace / given.get("path", "."), dirs_exist_ok=True
            )

    def sign_in(self, given: Mapping[str, str]) -> None:
        """Assume a role by the job's identity."""
        if self.permissions.get("id-token") != "write":
            raise StepFailed("credentials by OpenID Connect need the permission id-token: write")
        for name in ("role-to-assume", "aws-region"):
            if not given.get(name):
                raise StepFailed(f"{name} is empty")
        seconds = int(given.get("role-duration-seconds", "3600"))
        region = dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), given["aws-region"])
        credentials = self.hub.assume(given["role-to-assume"], given["aws-region"], seconds, self.subject)
        self.environment |= {**credentials, **region}

    def find(self, program: str) -> None:
        """Take a program that a set-up action would install from this machine. Raises `StepFailed`."""
        if shutil.which(program, path=self.environment["PATH"]) is None:
            raise StepFailed(f"{program} is not installed on this machine")


_ACTIONS: Final[Mapping[str, Callable[[Machine, Mapping[str, str]], None]]] = {
    "actions/checkout": Machine.checkout,
    "actions/setup-python": lambda machine, _: machine.find("python3"),
    "actions/setup-node": lambda machine, _: machine.find("node"),
    "hashicorp/setup-terraform": lambda machine, _: machine.find("terraform"),
    "actions/upload-artifact": Machine.upload,
    "actions/download-artifact": Machine.download,
    "aws-actions/configure-aws-credentials": Machine.sign_in,
}
