"""Inputs of the read model that are not in the database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Self

from airbridge.control_plane.parity import MAX_CACHED, Parity
from airbridge.core.catalogue import Catalogue
from airbridge.core.compatibility import Judgement
from airbridge.core.protocol import Versions
from airbridge.executor.setting_values import FourEyes
from airbridge.executor.settings import Settings

# Share of a certificate's life below which it counts as about to expire: workers renew it at half.
CERTIFICATE_WARNING: Final = 0.25

# A gateway whose liveness row is older counts as down: two writes are missing (gateway.background.liveness).
GATEWAY_SILENT: Final = timedelta(seconds=12)

# Intervals without a heartbeat after which a worker is stale: two, each up to a tenth longer (the worker's jitter).
STALE_INTERVALS: Final = 2.2
# Short intervals, as in tests, leave no room for a slow transaction.
LEAST_STALE: Final = timedelta(seconds=3)


@dataclass(frozen=True)
class Platform:
    """Catalogue, compatibility matrix and settings that lists and causes depend on."""

    catalogue: Catalogue
    parity: Parity
    #: Time without a heartbeat after which a worker counts as silent.
    alive_after: timedelta = timedelta(seconds=90)
    heartbeat_interval: timedelta = timedelta(seconds=10)
    certificate_lifetime: timedelta = timedelta(hours=1)
    lease: timedelta = timedelta(seconds=60)
    #: Whether a second operator must approve a revocation, which the dashboard then does not offer.
    revocation_needs_two: bool = False
    _judged: dict[str, Judgement] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Read the files that the settings name. Raises `ConfigurationError`."""
        parity = Parity.load(settings.compatibility_file, settings.worker_images or ())
        return cls.of(settings, Catalogue.read(settings.regions_file), parity)

    @classmethod
    def of(cls, settings: Settings, catalogue: Catalogue, parity: Parity) -> Self:
        """Return the platform of loaded files."""
        return cls(
            catalogue=catalogue,
            parity=parity,
            alive_after=timedelta(seconds=settings.worker_alive_seconds),
            heartbeat_interval=timedelta(seconds=settings.heartbeat_interval),
            revocation_needs_two=FourEyes.REVOCATION in (settings.four_eyes or ()),
            certificate_lifetime=timedelta(seconds=settings.certificate_lifetime),
            lease=timedelta(seconds=settings.lease_seconds),
        )

    @property
    def stale_after(self) -> timedelta:
        """Time without a heartbeat after which a worker is stale: it has missed two."""
        return min(max(self.heartbeat_interval * STALE_INTERVALS, LEAST_STALE), self.alive_after)

    def judge(self, versions: Mapping[str, Any]) -> Judgement:
        """Return the matrix's judgement of a worker with these versions.

        Cached if it may claim: a fleet runs few combinations, but a refused worker may report any number of them.
        """
        key = repr(sorted(versions.items()))
        found = self._judged.get(key)
        if found is None:
            found = self.parity.judge(Versions.model_validate(versions))
            if found.may_claim and len(self._judged) < MAX_CACHED:
                self._judged[key] = found
        return found
