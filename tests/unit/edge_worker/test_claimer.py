"""Grants that come twice."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.edge_worker.work.attempts import Attempt, Attempts
from airbridge.edge_worker.work.claimer import Claimer


@pytest.mark.parametrize(("claimed_at", "contact_at"), [(60.0, 180.0), (200.0, 200.0)])
def test_second_grant_keeps_later_contact(claimed_at: float, contact_at: float) -> None:
    """A claim that was begun before the last heartbeat and granted after it does not make the contact older."""
    attempts = Attempts(slots=1)
    held = Attempt(grant(), contact_at=180.0)
    attempts.add(held)
    claimer = cast("Claimer", SimpleNamespace(_attempts=attempts))
    batch = SimpleNamespace(elapsed=claimed_at)
    assert asyncio.run(Claimer._hold(claimer, held.grant, batch))  # type: ignore[arg-type] # its time alone
    assert held.contact_at == contact_at
