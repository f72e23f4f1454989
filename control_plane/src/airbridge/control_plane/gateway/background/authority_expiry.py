"""Time that the issuing CA and its root have left: a gauge, and a warning in the log before they end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Final

import structlog
from cryptography import x509
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from airbridge.control_plane.identity.ca import WARN_BEFORE, key_id
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.core import metrics

log = structlog.get_logger()

CHECK_EVERY: Final = timedelta(days=1)
REMEDIES: Final = {
    "issuing": "airbridge ca rotate",
    "root": "airbridge ca new-root, then airbridge ca rotate with it",
}


class AuthorityExpiry(Collector):
    """Collector of `metrics.CA_LEFT`, and the loop that warns."""

    def __init__(self, keyring: Keyring, clock: Callable[[], datetime]) -> None:
        self._keyring = keyring
        self._clock = clock

    def describe(self) -> list[Metric]:
        """Return nothing: its names are known without a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauge, in seconds."""
        spec = metrics.CA_LEFT
        family = GaugeMetricFamily(spec.name, spec.meaning, labels=spec.labels)
        for kind, certificate in self._certificates().items():
            family.add_metric([kind], self._left(certificate).total_seconds())
        yield family

    async def run(self) -> None:
        """Check at once and then daily, until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(CHECK_EVERY.total_seconds())

    def check(self) -> None:
        """Log a warning for each certificate that ends soon, or has ended."""
        for kind, certificate in self._certificates().items():
            if self._left(certificate) < WARN_BEFORE:
                log.warning(
                    "gateway.ca_ends",
                    kind=kind,
                    key_id=key_id(certificate),
                    ends=certificate.not_valid_after_utc.isoformat(),
                    remedy=REMEDIES[kind],
                )

    def _certificates(self) -> dict[str, x509.Certificate]:
        ca = self._keyring.keys.ca
        return {"issuing": ca.certificate, "root": ca.root}

    def _left(self, certificate: x509.Certificate) -> timedelta:
        return certificate.not_valid_after_utc - self._clock()
