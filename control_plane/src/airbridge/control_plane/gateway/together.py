"""Heartbeats together: a transaction that costs the same few statements for one worker as for two hundred.

Nothing in it waits for a lock, so that no worker's own work can hold up the leases of the others: rows that another
transaction holds are left out, and their workers' heartbeats answered by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway import authentication, holdings
from airbridge.control_plane.gateway.authentication import Caller
from airbridge.control_plane.gateway.holdings import Held
from airbridge.executor.ledger import clock, items, workers
from airbridge.executor.ledger.workers import Order
from airbridge.executor.protocol import Heartbeat, HeartbeatResponse

Answered = HeartbeatResponse | Refused | None
"""None: to be answered by itself."""


class Judge(Protocol):
    """What decides about one heartbeat."""

    @property
    def lease_seconds(self) -> float:
        """How long a lease holds from now."""

    def takes_for_granted(self, heartbeat: Heartbeat, held: Sequence[Held]) -> bool:
        """Whether the worker and the control plane agree on what it holds."""

    def answer(self, now: datetime, order: Order, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        """Return the answer, for a worker of which `order` is wanted."""


def answer(session: Any, beats: Sequence[tuple[Caller, Heartbeat]], judge: Judge) -> list[Answered]:
    """Answer those heartbeats that can be answered together, each in its place."""
    answers: list[Answered] = [None] * len(beats)
    for index, (caller, _) in enumerate(beats):
        answers[index] = not_allowed(caller)
    asking = _one_of_each(beats, answers)
    revoked = authentication.refusals(session, {index: beats[index][0] for index in asking.values()})
    for index, refused in revoked.items():
        answers[index] = refused
    asking = {worker: index for worker, index in asking.items() if index not in revoked}
    held = holdings.held(session, asking) if asking else {}
    asking = {
        worker: index
        for worker, index in asking.items()
        if judge.takes_for_granted(beats[index][1], held.get(worker, ()))
    }
    orders = workers.orders(session, asking) if asking else {}
    if not orders:
        return answers
    now = clock.now(session)
    said = {worker: beats[asking[worker]][1] for worker in orders}
    late = _renew(session, said, held, judge.lease_seconds, now)
    said = {worker: heartbeat for worker, heartbeat in said.items() if worker not in late}
    workers.note(session, said, now)
    for worker, heartbeat in said.items():
        index = asking[worker]
        answers[index] = judge.answer(now, orders[worker], beats[index][0], heartbeat)
    return answers


def not_allowed(caller: Caller) -> Refused | None:
    """Return why the caller may send no heartbeat, if it may not."""
    try:
        caller.require("worker:heartbeat", worker=caller.name.worker)
    except Refused as refused:
        return refused
    return None


def _one_of_each(beats: Sequence[tuple[Caller, Heartbeat]], answers: Sequence[Answered]) -> dict[str, int]:
    """Return the place of each worker's heartbeat; of one that asks twice, or tells of events, no more than that."""
    asking: dict[str, int] = {}
    for index, (caller, heartbeat) in enumerate(beats):
        if answers[index] is None and not heartbeat.events:
            asking.setdefault(caller.name.worker, index)
    return asking


def _renew(
    session: Any,
    said: dict[str, Heartbeat],
    held: dict[str, list[Held]],
    lease_seconds: float,
    now: datetime,
) -> set[str]:
    """Renew all leases that are named; return the workers of those that were not to be had."""
    wanted = {lease: worker for worker, heartbeat in said.items() for lease in heartbeat.leases}
    if not wanted:
        return set()
    renewed = items.renew_all(session, wanted, lease_seconds, at=now)
    ti_ids = [each.ti_id for worker in said for each in held.get(worker, ()) if each.lease in renewed]
    holdings.keep_alive(session, ti_ids, now, skip_locked=True)
    return {worker for lease, worker in wanted.items() if lease not in renewed}
