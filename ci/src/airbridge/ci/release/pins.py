"""Pins of an environment: its images by digest in its TOML file, and the release beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from airbridge.ci.checkout import Checkout, Source
from airbridge.ci.images.specs import CONTROL_PLANE, EDGE_WORKER

FOLDER = "infra/environments"
LOCAL_TIER = "local"

# The key of an environment's [images] table, and the image of the release that stands there.
KEYS = {"control_plane": CONTROL_PLANE.name, "worker": EDGE_WORKER.name}
# The worker image before this one, which the control plane admits until the next release. Absent before the second.
PREVIOUS = "previous_worker"

BY_DIGEST = re.compile(r"^(?P<repository>[a-z0-9][a-z0-9._/-]*)@(?P<digest>sha256:[0-9a-f]{64})$")
_PLACEHOLDER = re.compile(r"^sha256:([0-9a-f])\1{63}$")


def toml_path(environment: str) -> str:
    """The environment's file."""
    return f"{FOLDER}/{environment}.toml"


def release_path(environment: str) -> str:
    """The release that the environment is on; there is no such file before its first."""
    return f"{FOLDER}/{environment}.release.json"


def is_placeholder(digest: str) -> bool:
    """Return whether a digest is one digit repeated: the placeholder of an environment without a release."""
    return _PLACEHOLDER.match(digest) is not None


@dataclass(frozen=True)
class Pins:
    """An environment's file, as far as releases are concerned."""

    source: Source

    @property
    def images(self) -> dict[str, str]:
        """Reference by key."""
        return {str(key): str(value) for key, value in self.source.toml.get("images", {}).items()}

    @property
    def local(self) -> bool:
        """Return whether this is the emulator's environment, which takes no releases."""
        return self.source.toml.get("tier") == LOCAL_TIER

    @property
    def regions(self) -> tuple[str, ...]:
        """The edge regions, in the file's order."""
        return tuple(str(region["name"]) for region in self.source.toml.get("region", ()))

    def line(self, key: str) -> int:
        """The line on which an image is named."""
        return self.source.line(rf"^{re.escape(key)}\s*=", after=r"^\[images\]")

    def digest(self, key: str) -> str:
        """The digest of an image; empty if it is not named by one."""
        found = BY_DIGEST.match(self.images.get(key, ""))
        return found["digest"] if found else ""

    def moved(self, digests: dict[str, str]) -> str:
        """The file's text with other digests, everything else untouched.

        The worker that leaves becomes the previous one: during a rollout both are given work.
        """
        lines = list(self.source.lines)
        for key, digest in digests.items():
            number = self.line(key) - 1
            lines[number] = re.sub(r'"[^"]*"', f'"{KEYS[key]}@{digest}"', lines[number], count=1)
        leaving = self.digest("worker")
        if digests.get("worker", leaving) != leaving:
            self._replace_previous(lines, leaving)
        return "\n".join(lines) + "\n"

    def _replace_previous(self, lines: list[str], digest: str) -> None:
        worker = self.line("worker") - 1
        if PREVIOUS in self.images:
            previous = self.line(PREVIOUS) - 1
            del lines[previous]
            worker -= previous < worker
        if digest and not is_placeholder(digest):
            lines.insert(worker + 1, f'{PREVIOUS} = "{KEYS["worker"]}@{digest}"')


def load(checkout: Checkout, environment: str) -> Pins:
    """The pins of an environment."""
    return Pins(checkout.source(toml_path(environment)))
