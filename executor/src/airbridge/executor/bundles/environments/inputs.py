"""Inputs of an environment: all that decides what is locked and built. Equal inputs may share an environment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from airbridge.core.code import environment
from airbridge.core.code.snapshot import RESERVED
from airbridge.core.exceptions import BundleError
from airbridge.executor.bundle_settings import PackageSettings
from airbridge.executor.bundles.environments import platform_packages
from airbridge.executor.bundles.environments.requirements import (
    PROJECT,
    PROJECT_LOCK,
    REQUIREMENTS,
    RequirementFiles,
)

# Beside the manifest where an environment is built for another control plane; it is in no snapshot.
FILE: Final = f"{RESERVED}/inputs.json"

# Raised when what a build makes of equal inputs changes.
_RECIPE: Final = 1
_SHOWN: Final = 5


@dataclass(frozen=True)
class Inputs:
    """Requirement files, the platform's packages, and what is built for. `digest` names them."""

    files: Mapping[str, str]
    constraints: Mapping[str, str]
    base: tuple[str, ...]
    python: str
    machines: tuple[str, ...]
    sdists: bool
    recipe: int = _RECIPE

    @classmethod
    def here(cls, files: RequirementFiles, settings: PackageSettings) -> Self:
        """Return what decides the environment of these files in this process."""
        python, machine = environment.this_platform()
        return cls(
            files={name: content.decode() for name, content in files.contents.items()},
            constraints=dict(sorted(platform_packages.installed().items())),
            base=tuple(sorted(platform_packages.on_workers())),
            python=python,
            machines=tuple(sorted(map(str, settings.machines or (machine,)))),
            sdists=settings.sdists,
        )

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal."""
        return hashlib.sha256(self.encoded()).hexdigest()

    @property
    def requirement_files(self) -> RequirementFiles:
        """The files as they are found in a bundle."""
        contents = {name: text.encode() for name, text in self.files.items()}
        main = PROJECT_LOCK if PROJECT_LOCK in contents else min(contents)
        return RequirementFiles(main, contents)

    def encoded(self) -> bytes:
        """Return them as JSON; equal inputs have equal bytes."""
        content = {
            "recipe": self.recipe,
            "files": dict(self.files),
            "constraints": dict(self.constraints),
            "base": list(self.base),
            "platforms": [self.python, *self.machines],
            "sdists": self.sdists,
        }
        return json.dumps(content, sort_keys=True).encode()

    @classmethod
    def decode(cls, text: bytes) -> Self:
        """Read what `encoded` returned. Raises `BundleError`."""
        try:
            data: Mapping[str, Any] = json.loads(text)
            python, *machines = _texts(data["platforms"])
            found = cls(
                _table(data["files"]),
                _table(data["constraints"]),
                _texts(data["base"]),
                python,
                tuple(machines),
                bool(data["sdists"]),
                int(data["recipe"]),
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise BundleError(f"{FILE} is not what 'airbridge env build --out' writes: {error!r}") from error
        if not found.files or not found.files.keys() <= {REQUIREMENTS, PROJECT, PROJECT_LOCK}:
            raise BundleError(f"{FILE} has files that name no packages: {', '.join(sorted(found.files))}")
        return found

    def differences(self, platform: Inputs) -> Iterator[str]:
        """Yield what a control plane has otherwise, in words. The requirement files are equal."""
        if self.recipe != platform.recipe:
            yield f"AirBridge builds by recipe {platform.recipe} there, by {self.recipe} here"
        if self.python != platform.python:
            yield f"it runs Python {platform.python}, this is for {self.python}"
        if self.machines != platform.machines:
            yield (
                f"its [airbridge] package_machines are {','.join(platform.machines)}, this is for {','.join(self.machines)}"
            )
        if self.sdists != platform.sdists:
            yield f"its [airbridge] package_sdists is {platform.sdists}, here it was {self.sdists}"
        names = sorted(self.constraints.keys() | platform.constraints.keys() | {*self.base, *platform.base})
        packages = [name for name in names if self._package(name) != platform._package(name)]
        for name in packages[:_SHOWN]:
            yield f"it has {platform._package(name)}, here was {self._package(name)}"
        if len(packages) > _SHOWN:
            yield f"{len(packages) - _SHOWN} more packages differ"

    def _package(self, name: str) -> str:
        version = self.constraints.get(name)
        where = "" if name in self.base else " (not on workers)"
        return f"no {name}" if version is None else f"{name}=={version}{where}"


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value))


def _table(value: Any) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()}
