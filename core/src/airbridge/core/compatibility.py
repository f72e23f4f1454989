"""The compatibility matrix (``compatibility.toml``): which versions may work together, and what happens outside it.

The one loader of that file, free of Airflow: the gateway judges workers by it at enrolment, heartbeat and
claim, `airbridge status` shows its verdicts, and `airbridge-ci parity` holds the sources to it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import Versions

FILE_NAME = "compatibility.toml"


class Verdict(StrEnum):
    """Treatment of a worker by the control plane."""

    #: It gets work.
    ALLOW = "allow"
    #: It finishes what it holds and is given nothing more.
    DRAIN = "drain"
    #: It is not enrolled and is granted nothing.
    REFUSE = "refuse"


@dataclass(frozen=True)
class Judgement:
    """A verdict, and the reason in words that an operator can act on."""

    verdict: Verdict
    detail: str

    @property
    def may_enrol(self) -> bool:
        """Return whether such a worker gets an identity; one that drains must be able to renew it and report."""
        return self.verdict is not Verdict.REFUSE

    @property
    def may_claim(self) -> bool:
        """Return whether such a worker is granted work."""
        return self.verdict is Verdict.ALLOW


def _require_range(value: str) -> str:
    try:
        SpecifierSet(value)
    except InvalidSpecifier:
        raise ValueError(
            f"{value!r} is not a version range; write one like '==0.1.*' or '>=3.11,<3.13'"
        ) from None
    if not value.strip():
        raise ValueError("an empty range allows every version; write one like '==0.1.*'")
    return value


VersionRange = Annotated[str, AfterValidator(_require_range)]


class Compatible(BaseModel):
    """One entry: a pair of control plane and worker that meets every field of it gets its verdict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    control_plane: VersionRange
    worker: VersionRange
    protocol: Annotated[tuple[int, ...], Field(min_length=1)]
    airflow: VersionRange
    task_sdk: VersionRange
    python: VersionRange
    verdict: Verdict = Verdict.ALLOW

    def applies_to(self, control_plane: str) -> bool:
        """Return whether the entry applies to this control plane version."""
        return _within(control_plane, self.control_plane)

    def mismatches(self, worker: Versions) -> tuple[str, ...]:
        """Each field of the entry that the worker does not meet, in words."""
        ranges = (
            ("AirBridge", worker.airbridge, self.worker),
            ("Airflow", worker.airflow, self.airflow),
            ("the Task SDK", worker.task_sdk, self.task_sdk),
            ("Python", worker.python, self.python),
        )
        found = [f"{what} is {has}, must be {must}" for what, has, must in ranges if not _within(has, must)]
        if worker.protocol not in self.protocol:
            required = " or ".join(map(str, self.protocol))
            found.append(f"the protocol is {worker.protocol}, must be {required}")
        return tuple(found)


class Matrix(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_: Annotated[Literal[1], Field(alias="schema")]
    outside: Literal[Verdict.REFUSE, Verdict.DRAIN] = Verdict.REFUSE
    compatible: Annotated[tuple[Compatible, ...], Field(min_length=1)]

    def judge(self, control_plane: str, worker: Versions, images: Collection[str] = ()) -> Judgement:
        """Return the verdict of a control plane of this AirBridge version on a worker.

        `images`, where given, are the digests that the releases in force allow: a worker that names
        another one, or none, is refused whatever its versions are.
        """
        if images and worker.image not in images:
            has = worker.image or "not named by the worker"
            return Judgement(Verdict.REFUSE, f"the image is {has}, must be {' or '.join(sorted(images))}")
        served = [entry for entry in self.compatible if entry.applies_to(control_plane)]
        if not served:
            return Judgement(
                self.outside, f"{FILE_NAME} has no entry for a control plane of version {control_plane}"
            )
        for entry in served:
            if not entry.mismatches(worker):
                return _met(entry, control_plane, worker)
        nearest = min((entry.mismatches(worker) for entry in served), key=len)
        return Judgement(self.outside, f"outside the compatibility matrix: {'; '.join(nearest)}")


def _met(entry: Compatible, control_plane: str, worker: Versions) -> Judgement:
    if entry.verdict is Verdict.ALLOW:
        return Judgement(Verdict.ALLOW, f"worker {worker.airbridge} works with control plane {control_plane}")
    return Judgement(
        entry.verdict,
        f"{FILE_NAME} has verdict {entry.verdict} for workers {entry.worker} with a control plane {entry.control_plane}:"
        f" this one is {worker.airbridge}",
    )


def _within(version: str, versions: str) -> bool:
    try:
        # Pre-releases count: a range would exclude development builds otherwise.
        return SpecifierSet(versions).contains(Version(version), prereleases=True)
    except ValueError:  # `InvalidVersion`, or a number of more digits than Python reads
        return False


def parse(text: str, source: str) -> Matrix:
    """Return the matrix in `text`. Raises ConfigurationError that names `source` and every wrong key."""
    try:
        return Matrix.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    except ValidationError as error:
        problems = [f"{source}: {_key(item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ConfigurationError("\n".join(problems)) from error


def load(path: Path) -> Matrix:
    """Return the matrix in a file. Raises ConfigurationError."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ConfigurationError(
            f"{path}: the compatibility matrix cannot be read: {error.strerror}"
        ) from error


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "(the whole file)"
