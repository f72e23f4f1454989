"""Batch of heartbeats: one transaction with the same few statements for one worker as for two hundred.

No statement waits for a lock, so that one worker's transactions cannot delay the leases of others. Rows that another
transaction has locked are skipped, and the heartbeats of their workers are handled alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth import authentication
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.work import held_leases
from airbridge.control_plane.gateway.work.held_leases import Held
from airbridge.core.protocol import Heartbeat, HeartbeatResponse, LeaseRef
from airbridge.executor.ledger import leases, workers
from airbridge.executor.ledger.workers import Order

# None: the batch cannot answer this heartbeat; it is handled alone.
Answered = HeartbeatResponse | Refused | None


class Responder(Protocol):
    """Decides about one heartbeat."""

    @property
    def lease_seconds(self) -> float:
        """Length of a lease from now."""

    def agrees_on_leases(self, heartbeat: Heartbeat, held: Sequence[Held]) -> bool:
        """Return whether the worker and the control plane agree on the worker's leases."""

    def answer(
        self, session: Any, now: datetime, order: Order, caller: Caller, heartbeat: Heartbeat
    ) -> HeartbeatResponse:
        """Return the answer to a worker of the ledger's `order`."""


class _Entry(NamedTuple):
    """Heartbeat of a batch, with its position in the batch."""

    position: int
    caller: Caller
    heartbeat: Heartbeat


# By worker id: each step of `answer` passes on the entries that it neither answered nor left to be handled alone.
_Entries = Mapping[str, _Entry]


def answer(
    session: Any, heartbeats: Sequence[tuple[Caller, Heartbeat]], responder: Responder
) -> list[Answered]:
    """Return the answers in the order of the heartbeats; None for those that must be handled alone."""
    answers: list[Answered] = [_denial(caller) for caller, _ in heartbeats]
    permitted = _permitted(heartbeats, answers)
    revoked, passed = authentication.judge_all(
        session, {each.position: each.caller for each in permitted.values()}
    )
    valid = {worker: each for worker, each in permitted.items() if each.position in passed}
    for position, refused in revoked.items():
        answers[position] = refused
    for position, response in _respond(session, valid, responder):
        answers[position] = response
    return answers


def _denial(caller: Caller) -> Refused | None:
    """Return the denial of a caller that may not send heartbeats."""
    try:
        caller.require("worker:heartbeat", worker=caller.name.worker)
    except Refused as refused:
        return refused
    return None


def _permitted(heartbeats: Sequence[tuple[Caller, Heartbeat]], answers: Sequence[Answered]) -> _Entries:
    """Return the first heartbeat of each permitted worker; those with events are handled alone."""
    entries: dict[str, _Entry] = {}
    for index, (caller, heartbeat) in enumerate(heartbeats):
        if answers[index] is None and not heartbeat.events:
            entries.setdefault(caller.name.worker, _Entry(index, caller, heartbeat))
    return entries


def _respond(session: Any, valid: _Entries, responder: Responder) -> Iterator[tuple[int, HeartbeatResponse]]:
    """Renew leases, store the heartbeats, and yield the answers by position."""
    held = held_leases.held(session, valid) if valid else {}
    agreeing = {
        worker: each
        for worker, each in valid.items()
        if responder.agrees_on_leases(each.heartbeat, held.get(worker, ()))
    }
    # Locks the workers' rows; rows that another transaction has locked are missing from the result.
    if not agreeing:
        return
    orders, now = workers.orders(session, agreeing)
    locked = {worker: agreeing[worker] for worker in orders}
    if not locked:
        return
    unrenewed = _renew(session, locked, held, responder.lease_seconds, now)
    renewed = {worker: each for worker, each in locked.items() if worker not in unrenewed}
    workers.note(session, {worker: each.heartbeat for worker, each in renewed.items()}, now)
    for worker, each in renewed.items():
        yield each.position, responder.answer(session, now, orders[worker], each.caller, each.heartbeat)


def _renew(
    session: Any, entries: _Entries, held: Mapping[str, Sequence[Held]], lease_seconds: float, now: datetime
) -> set[str]:
    """Renew all listed leases; return the workers of leases that could not be renewed."""
    wanted: dict[LeaseRef, str] = {}
    for worker, each in entries.items():
        listed = set(each.heartbeat.leases)
        fresh = held_leases.fresh_triggers(held.get(worker, ()), listed, now, lease_seconds)
        wanted |= dict.fromkeys(listed - fresh, worker)
    if not wanted:
        return set()
    renewed = leases.renew_all(session, wanted, lease_seconds, at=now)
    alive = [each for worker in entries for each in held.get(worker, ()) if each.lease in renewed]
    held_leases.keep_alive(session, held_leases.tasks_of(alive), now, skip_locked=True)
    return {worker for lease, worker in wanted.items() if lease not in renewed}
