"""What a local platform can be asked to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from airbridge.control_plane.local.aws import Region, parse_regions

DEFAULT_REGIONS = ("us-east-1", "eu-west-1")


@dataclass(frozen=True)
class Options:
    """The choices of `airbridge up`. The first region is the home region."""

    directory: Path
    regions: tuple[Region, ...] = field(default_factory=lambda: parse_regions(DEFAULT_REGIONS))
    workers_per_region: int = 1
    schedulers: int = 1
    slots: int = 8
    dags: Path | None = None
    port: int | None = None
    """The UI's port; None takes the one it had last, or a free one."""
    terraform: Path | None = None
    """Where `make infra-local` left its outputs: run on those queues and buckets, each process under its role. The
    regions are then the deployment's."""
    airflow: Mapping[str, str] = field(default_factory=dict)
    """Airflow settings of the user's own, as ``{"section.option": value}``."""
    worker_env: Mapping[str, str] = field(default_factory=dict)
    """More variables for the workers' environment (AIRBRIDGE_WORKER_...)."""
