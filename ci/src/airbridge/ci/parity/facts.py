"""Facts of the sources: the values that every other place is compared with."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from airbridge.ci.checkout import Checkout, Source
from airbridge.ci.images.build import PROTOCOL_FILE
from airbridge.ci.images.inventory import normalise

ROOT = "pyproject.toml"
LOCK = "uv.lock"
MATRIX = "compatibility.toml"


@dataclass(frozen=True)
class Distribution:
    """One package of the workspace."""

    source: Source

    @property
    def project(self) -> dict[str, Any]:
        """Its `[project]` table."""
        return dict(self.source.toml["project"])

    @property
    def name(self) -> str:
        """The distribution's name."""
        return str(self.project["name"])

    @property
    def version(self) -> str:
        """The distribution's version."""
        return str(self.project["version"])

    @cached_property
    def requirements(self) -> tuple[Requirement, ...]:
        """All requirements, extras included; those of an extra carry its marker."""
        required = [Requirement(text) for text in self.project.get("dependencies", ())]
        for extra, texts in self.project.get("optional-dependencies", {}).items():
            required += [_of_extra(text, extra) for text in texts]
        return tuple(required)

    def line_of(self, name: str) -> int:
        """Return the line of a requirement."""
        return self.source.line(rf'^\s*"{re.escape(name)}(?=[\[<>=!~;" ])')


def _of_extra(text: str, extra: str) -> Requirement:
    """Return a requirement of an extra, with a marker that says so besides its own."""
    requirement = Requirement(text)
    own = f"({requirement.marker}) and " if requirement.marker else ""
    requirement.marker = Marker(f"{own}extra == '{extra}'")
    return requirement


@dataclass(frozen=True)
class Facts:
    """The checkout's own values."""

    checkout: Checkout

    @cached_property
    def root(self) -> Source:
        """The workspace's pyproject.toml."""
        return self.checkout.source(ROOT)

    @cached_property
    def lock(self) -> Source:
        """uv.lock."""
        return self.checkout.source(LOCK)

    @cached_property
    def distributions(self) -> tuple[Distribution, ...]:
        """The workspace's packages, the workspace itself first."""
        members = self.root.toml["tool"]["uv"]["workspace"]["members"]
        return (
            Distribution(self.root),
            *(Distribution(self.checkout.source(f"{member}/pyproject.toml")) for member in members),
        )

    @property
    def version(self) -> str:
        """AirBridge's version: the workspace's."""
        return self.distributions[0].version

    @property
    def requires_python(self) -> str:
        """The range of Python that AirBridge runs on."""
        return str(self.distributions[0].project["requires-python"])

    @cached_property
    def oldest_python(self) -> str:
        """The oldest minor version of that range: "3.11"."""
        minors = [f"3.{minor}" for minor in range(8, 30)]
        allowed = SpecifierSet(self.requires_python)
        return next((minor for minor in minors if allowed.contains(f"{minor}.99")), "3")

    @cached_property
    def locked(self) -> dict[str, dict[str, Any]]:
        """The lock's packages by name."""
        return {str(package["name"]): dict(package) for package in self.lock.toml["package"]}

    def locked_version(self, name: str) -> str:
        """The version that the lock has of a distribution; empty if it has none."""
        return str(self.locked.get(normalise(name), {}).get("version", ""))

    def lock_line(self, name: str, key: str = "version") -> int:
        """The line of a package's entry in the lock on which `key` stands."""
        return self.lock.line(rf"^{key} = ", after=rf'^name = "{re.escape(name)}"$')

    @cached_property
    def protocol_source(self) -> Source:
        """protocol.py."""
        return self.checkout.source(PROTOCOL_FILE)

    @cached_property
    def _protocol(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for node in ast.parse(self.protocol_source.text).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values[node.targets[0].id] = node.value
        return values

    @property
    def protocol(self) -> int:
        """PROTOCOL_VERSION."""
        return int(ast.literal_eval(self._protocol["PROTOCOL_VERSION"]))

    @property
    def supported_protocols(self) -> frozenset[int]:
        """SUPPORTED_VERSIONS."""
        node = self._protocol["SUPPORTED_VERSIONS"]
        return frozenset(ast.literal_eval(node.args[0] if isinstance(node, ast.Call) else node))
