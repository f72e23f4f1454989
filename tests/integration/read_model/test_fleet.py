"""Figures of the fleet that the gateway exposes as metrics."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.integration.read_model.conftest import Seed

from airbridge.control_plane.gateway.heartbeat import heartbeats
from airbridge.control_plane.identity import enrolment
from airbridge.control_plane.observability.alarms import ALERTS
from airbridge.control_plane.read_model import fleet
from airbridge.control_plane.read_model.platform import Platform
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.identity import certificates

[ENDING] = [each for each in ALERTS if each.name == "CertificateEnding"]


def certified(session: Any, seed: Seed, name: str, lifetime: float, left: float, pool: str) -> None:
    """A live worker with a certificate of this lifetime, of which this many seconds are left."""
    now = clock.now(session)
    row = seed.worker(name, pool=pool, certificate=timedelta(seconds=left), certificate_thumbprint=name * 8)
    issued = certificates.issue(session, row, name * 8, row.certificate_expires_at, None)
    issued.issued_at = now - timedelta(seconds=lifetime - left)
    session.flush()


@pytest.mark.parametrize("lifetime", [60.0, 600.0, 3_600.0, 86_400.0])
def test_certificate_left_is_part_of_its_lifetime(
    session: Any, seed: Seed, platform: Platform, lifetime: float
) -> None:
    """A worker that is about to renew raises no alarm, and one that did not renew does, whatever the lifetime is."""
    certified(session, seed, "healthy1", lifetime, lifetime * 0.49, "default")
    certified(session, seed, "forgot-1", lifetime, lifetime * 0.2, "gpu")
    certified(session, seed, "renewed1", 10 * lifetime, 9 * lifetime, "gpu")
    found = fleet.extremes(session, platform)
    parts = [found["eu-west-1", pool].certificate_left_ratio for pool in ("default", "gpu")]
    assert parts == pytest.approx([0.49, 0.2], abs=0.05)
    assert [each is not None and each < ENDING.threshold for each in parts] == [False, True]


def test_unknown_certificate_has_configured_lifetime(session: Any, seed: Seed, platform: Platform) -> None:
    """A certificate whose issue was not recorded counts by the setting."""
    seed.worker("old", certificate=timedelta(minutes=15))
    [found] = fleet.extremes(session, platform).values()
    assert found.certificate_left_ratio == pytest.approx(0.25, abs=0.01)
    assert found.certificate_left == pytest.approx(900, abs=5)


def test_alarm_is_below_every_renewal() -> None:
    """Workers renew at half of the lifetime, and the gateway demands it later: the alarm is below both."""
    assert ENDING.threshold <= 1 - max(enrolment.RENEW_AT, heartbeats.RENEW_AT)
