"""What the read model must know that is not in the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Self

from airbridge.control_plane.parity import Parity
from airbridge.executor.compatibility import Judgement
from airbridge.executor.protocol import Versions
from airbridge.executor.regions import Catalogue
from airbridge.executor.settings import Settings

CERTIFICATE_WARNING: Final = 0.25
"""A certificate is about to end when this share of its life is left: it should have been renewed at half."""

GATEWAY_SILENT: Final = timedelta(seconds=30)
"""A gateway that has not written its sign of life for longer is not there."""


@dataclass(frozen=True)
class Platform:
    """The catalogue, the matrix and the settings that a list or a cause is judged by."""

    catalogue: Catalogue
    parity: Parity
    alive_after: timedelta = timedelta(seconds=90)
    """How long a worker may be silent and still counts as there."""
    heartbeat_interval: timedelta = timedelta(seconds=10)
    certificate_lifetime: timedelta = timedelta(hours=1)
    lease: timedelta = timedelta(seconds=60)
    _judged: dict[str, Judgement] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Read the files that the settings name. Raises `ConfigurationError`."""
        parity = Parity.load(settings.compatibility_file, settings.worker_images or ())
        return cls.of(settings, Catalogue.read(settings.regions_file), parity)

    @classmethod
    def of(cls, settings: Settings, catalogue: Catalogue, parity: Parity) -> Self:
        """Return the platform of files that were read already."""
        return cls(
            catalogue=catalogue,
            parity=parity,
            alive_after=timedelta(seconds=settings.worker_alive_seconds),
            heartbeat_interval=timedelta(seconds=settings.heartbeat_interval),
            certificate_lifetime=timedelta(seconds=settings.certificate_lifetime),
            lease=timedelta(seconds=settings.lease_seconds),
        )

    def judge(self, versions: Mapping[str, Any]) -> Judgement:
        """Return what the matrix says of a worker of these versions; a fleet runs few different ones."""
        key = repr(sorted(versions.items()))
        found = self._judged.get(key)
        if found is None:
            found = self.parity.judge(Versions.model_validate(versions))
            if len(self._judged) < 10_000:
                self._judged[key] = found
        return found
