"""Images and their architectures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Architecture = Literal["amd64", "arm64"]
ARCHITECTURES: tuple[Architecture, ...] = ("amd64", "arm64")

# Names of the machines in `uname -m` and in wheels.
MACHINES: dict[Architecture, str] = {"amd64": "x86_64", "arm64": "aarch64"}

# The numeric user of both images. The boot script of a worker's instance gives its state folder to the same.
USER = 10001

# What the images say of their origin.
REPOSITORY = "https://github.com/airbridge/airbridge"
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Image:
    """One image: its name in registries and manifests, the package it carries and its Dockerfile."""

    name: str
    package: str
    own_packages: tuple[str, ...]

    @property
    def dockerfile(self) -> str:
        """Path of the Dockerfile in the checkout."""
        return f"images/{self.name}.Dockerfile"

    @property
    def contents(self) -> str:
        """Path of the file that says what of its locked dependencies it leaves out; there need not be one."""
        return f"images/{self.name}.toml"


CONTROL_PLANE = Image(
    "control-plane",
    "airbridge-control-plane",
    ("airbridge-core", "airbridge-executor", "airbridge-control-plane"),
)
EDGE_WORKER = Image("edge-worker", "airbridge-edge-worker", ("airbridge-core", "airbridge-edge-worker"))
IMAGES = (CONTROL_PLANE, EDGE_WORKER)
