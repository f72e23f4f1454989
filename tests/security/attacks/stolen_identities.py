"""Attack of a stolen identity on what all workers share: leases that it never had. Finding 7."""

from __future__ import annotations

from uuid import uuid4

from tests.integration.gateway.world import World
from tests.security.registry import attack

from airbridge.core.protocol import CancelCommand, LeaseRef

UNKNOWN_LEASES = 2_000
STALE_LEASES = 500
# Far fewer than listed: each costs a row of the audit trail.
AUDITED = 100


@attack(7)
def leases_of_nobody(world: World) -> None:
    """A heartbeat lists thousands of leases that the worker never held.

    Few are audited, and few of unknown work items answered; for known ones the worker learns of each that it is lost.
    """
    thief = world.worker()
    [item] = world.items()
    grant = thief.grant(item)
    own = LeaseRef(item_id=grant.item_id, epoch=grant.epoch)
    thief.release(own)
    unknown = [LeaseRef(item_id=uuid4(), epoch=1) for _ in range(UNKNOWN_LEASES)]
    stale = [LeaseRef(item_id=grant.item_id, epoch=grant.epoch + 1 + each) for each in range(STALE_LEASES)]
    answer = thief.beat(*unknown, *stale, own)
    cancelled = [each.item_id for each in answer.commands if isinstance(each, CancelCommand)]
    assert cancelled.count(grant.item_id) == STALE_LEASES + 1
    assert len(cancelled) <= STALE_LEASES + 1 + AUDITED, f"{len(cancelled)} leases cancelled"
    audited = len(world.audited("lease.refused", worker_id=thief.name.worker))
    assert 0 < audited <= AUDITED, f"{audited} leases audited"
