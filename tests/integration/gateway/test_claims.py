"""Claims: what the audit trail has of them, and messages that are refused by what has become of their item."""

from __future__ import annotations

from tests.integration.gateway.world import World

from airbridge.core.protocol import Disposition, RefusalReason
from airbridge.executor.ledger.models import ItemState, WorkItemRow


def test_grants_are_audited(world: World) -> None:
    """Each grant is in the audit trail, with the worker, the item, its epoch and the scope that allowed it."""
    [item] = world.items()
    worker = world.worker()
    worker.grant(item)
    [row] = world.audited("claim.granted", item_id=item)
    assert (row.verdict, row.actor, row.worker_id, row.epoch) == (
        "granted",
        worker.name.uri,
        worker.name.worker,
        1,
    )
    assert row.rule == "scope work:claim queue=eu-west-1/default"
    assert str(row.ti_id) == world.row(item).ti_id


def test_refusals_are_audited(world: World) -> None:
    """Each refusal is in the audit trail and in the timeline, with its reason; a message that nobody signed names no item."""
    [item] = world.items()
    worker = world.worker()
    held = world.envelope(item)
    world.worker().grant(item)
    refusals = worker.claim(held, "forged").refusals
    assert {each.disposition for each in refusals} == {Disposition.DROP, Disposition.DEAD_LETTER}
    rows = world.audited("claim.refused", worker_id=worker.name.worker)
    assert {row.detail["reason"] for row in rows} == {str(each.reason) for each in refusals}
    assert {(row.verdict, row.actor) for row in rows} == {("denied", worker.name.uri)}
    assert {row.detail.get("item") for row in rows} == {item, None}
    [event] = [row for row in world.events("claim.refused") if str(row.item_id) == item]
    assert (event.worker_id, str(event.ti_id)) == (worker.name.worker, world.row(item).ti_id)


def test_moved_item_is_not_granted(world: World) -> None:
    """A message whose item now belongs to another pool is refused, even under the same epoch."""
    [item] = world.items()
    captured = world.envelope(item)
    with world.metadata.session() as session:
        session.get(WorkItemRow, item).pool = "gpu"
        session.commit()
    [refusal] = world.worker().claim(captured).refusals
    assert (refusal.reason, refusal.detail) == (RefusalReason.WRONG_REGION, "it was moved to gpu@eu-west-1")
    assert world.row(item).state == ItemState.PLACED
