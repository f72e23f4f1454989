"""Options of a local platform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from airbridge.control_plane.local.services.aws import EmulatedRegion, parse_regions

DEFAULT_REGIONS = ("us-east-1", "eu-west-1")


@dataclass(frozen=True)
class Options:
    """Options of `airbridge up`. The first region is the home region."""

    directory: Path
    regions: tuple[EmulatedRegion, ...] = field(default_factory=lambda: parse_regions(DEFAULT_REGIONS))
    workers_per_region: int = 1
    schedulers: int = 1
    slots: int = 8
    dags: Path | None = None
    #: Port of the UI; None for the previous one, or a free one.
    port: int | None = None
    #: Output directory of `make infra-local`: run on its queues and buckets, each process with its role. The
    #: regions are then the deployment's.
    terraform: Path | None = None
    #: File with the ``[[team]]`` entries of the catalogue.
    teams: Path | None = None
    #: File with what regions and pools keep, see `services.residency`.
    residency: Path | None = None
    #: Airflow settings of the user, as ``{"section.option": value}``.
    airflow: Mapping[str, str] = field(default_factory=dict)
    #: More variables for the workers' environment (AIRBRIDGE_WORKER_...).
    worker_env: Mapping[str, str] = field(default_factory=dict)
