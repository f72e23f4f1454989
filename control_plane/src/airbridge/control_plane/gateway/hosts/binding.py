"""Binding of hosts' keys by operators: the scopes that permit it, and its effect. It admits a host, as a join token does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from airbridge.control_plane import audit_events
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.api import documents, operator_endpoint
from airbridge.control_plane.gateway.auth.authentication import Operator
from airbridge.control_plane.identity import bound_keys
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import Name, RefusalReason, VerifyKey
from airbridge.core.signing import public_key
from airbridge.executor.ledger.identity import bound_keys as known
from airbridge.executor.ledger.identity.models import BoundKeyRow

Payload = Mapping[str, Any]


class NewBoundKey(operator_endpoint.Body):
    """Request to bind a host's key to a worker's name."""

    worker: Name
    region: Name
    pool: Name = "default"
    #: Ed25519, raw, base64url, as ``airbridge-worker key`` prints it.
    key: str = Field(max_length=64)


def may_bind(_session: Any, operator: Operator, asked: Payload) -> None:
    """Raise `Refused` unless the operator may admit hosts to the pool, or if the key is none."""
    operator.require("tokens:create", "join", region=asked["region"], pool=asked["pool"])
    try:
        public_key(VerifyKey(kid="", public_key=asked["key"]))
    except ValueError as error:
        raise Refused(
            400, RefusalReason.MALFORMED, "key is no Ed25519 key; 'airbridge-worker key' prints a host's"
        ) from error


def bind(session: Any, operator: Operator, asked: Payload) -> dict[str, Any]:
    """Bind the key."""
    wanted = NewBoundKey.model_validate(asked)
    # The trust domain is not part of what is kept.
    name = WorkerName("", wanted.region, wanted.pool, wanted.worker)
    row = bound_keys.bind(
        session, name, wanted.key, operator.owner, operator.actor, "scope tokens:create", operator.address
    )
    return document(row)


def unbind(session: Any, operator: Operator, worker: str) -> dict[str, Any]:
    """Forget a name's key. Raises `Refused`."""
    row = known.find(session, worker)
    if row is None:
        raise operator_endpoint.missing(f"no key is bound to worker {worker[:64]!r}")
    operator.require("tokens:create", "join", region=row.region, pool=row.pool)
    shown = document(row)
    known.unbind(session, worker)
    audit_events.record(
        session,
        "bound_key.removed",
        "changed",
        operator.actor,
        rule="scope tokens:create",
        address=operator.address,
        region=shown["region"],
        worker_id=worker,
        key=shown["key"],
    )
    return shown


def listing(session: Any, operator: Operator) -> dict[str, Any]:
    """Return all bound keys, to an operator who may read tokens."""
    operator.require("tokens:read")
    return {"keys": [document(row) for row in known.list_all(session)]}


def document(row: BoundKeyRow) -> dict[str, Any]:
    """Return a bound key."""
    return {
        "worker": row.worker_id,
        "region": row.region,
        "pool": row.pool,
        "key": row.public_key,
        "owner": row.owner,
        "joins": row.counter,
        "bound_at": documents.time(row.bound_at),
        "seen_at": documents.time(row.seen_at),
    }
