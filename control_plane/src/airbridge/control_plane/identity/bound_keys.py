"""Join method ``bound_key``: a host without another identity proves that it holds the key that is bound to its name.

An operator binds the key, or a join token binds it at first use. From then on the host joins by itself, however long it was off,
unless its pool says otherwise. A count that is taken shows that its state directory was copied: the name is stopped for both.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from airbridge.control_plane import audit_events
from airbridge.control_plane.exceptions import IdentityForked, Refused
from airbridge.control_plane.identity import generations
from airbridge.control_plane.identity.iam import REMEMBERED
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import EnrolRequest, JoinByBoundKey, RefusalReason
from airbridge.core.regions import Pool
from airbridge.core.wire import rejoin
from airbridge.executor.ledger.identity import bound_keys, join_proofs, tokens
from airbridge.executor.ledger.identity.bound_keys import Count
from airbridge.executor.ledger.identity.models import BoundKeyRow, TokenRow

RULE: Final = "join method bound_key"
BOUND: Final = "bound_key.bound"


def check_proof(session: Any, request: EnrolRequest, join: JoinByBoundKey) -> None:
    """Raise `Refused` unless the proof is for this request, by the key that it names, and new."""
    subject = rejoin.Subject(request.region, request.pool, request.worker, request.csr_pem)
    if not rejoin.is_valid_join(join, subject):
        raise _refused("the proof is not for this request, or not by the key that it names")
    if not join_proofs.use(session, tokens.hash_of(join.signature), request.worker, REMEMBERED):
        raise _refused("this proof was used before; make a new one")


def bind_with(
    session: Any, name: WorkerName, join: JoinByBoundKey, token: TokenRow, address: str
) -> BoundKeyRow:
    """Bind the key of a first join that came with a good token."""
    return bind(session, name, join.public_key, token.owner, name.uri, f"join token {token.id}", address)


def bind(  # noqa: PLR0917 - the row, then who did it, by which right, from where
    session: Any, name: WorkerName, public_key: str, owner: str, actor: str, rule: str, address: str | None
) -> BoundKeyRow:
    """Bind a key to a name, and record it."""
    row = bound_keys.bind(
        session,
        worker_id=name.worker,
        region=name.region,
        pool=name.pool,
        public_key=public_key,
        owner=owner,
    )
    audit_events.record(
        session,
        BOUND,
        "changed",
        actor,
        rule=rule,
        address=address,
        region=name.region,
        worker_id=name.worker,
        pool=name.pool,
        key=public_key,
        owner=owner,
    )
    return row


def check(  # noqa: PLR0917 - the name, its proof, what is known of it, and from where it comes
    session: Any, name: WorkerName, join: JoinByBoundKey, row: BoundKeyRow, pool: Pool, address: str
) -> None:
    """Count a join under a bound key. Raises `Refused`, or `IdentityForked` if the count is taken."""
    if row.public_key != join.public_key:
        raise _refused(
            f"another key is bound to worker {name.worker!r}; an operator can bind this host's in its place"
        )
    if (row.region, row.pool) != (name.region, name.pool):
        raise _refused(f"the key of worker {name.worker!r} is bound for pool {row.pool}@{row.region}")
    silent, days = bound_keys.silent_for(session, row), pool.max_absence_days
    if days is not None and silent > timedelta(days=days):
        raise _refused(
            f"worker {name.worker!r} was away for {silent.days} days, and pool {row.pool}@{row.region} admits hosts by themselves "
            f"for {days:g} days (max_absence_days); an operator can bind its key again"
        )
    held = row.counter
    if bound_keys.count(session, row, join.counter, join.attempt) is Count.TAKEN:
        why = f"its state directory was copied: join number {join.counter} came once more, after number {held} had been used"
        raise IdentityForked(
            name.uri,
            f"this worker is revoked: {why}; the original and the copy are both stopped",
            lambda opened: generations.stop_name(
                opened, name, address, why, {"counter": join.counter, "counted": held, "key": join.public_key}
            ),
            rule=f"count of joins of {name.worker}",
        )


def missing(name: WorkerName) -> Refused:
    """Return the denial of a host whose name has no key, and that shows no token."""
    return _refused(
        f"no key is bound to worker {name.worker!r}, and the request has no join token to bind this one; an operator binds "
        f"it by: airbridge worker bind {name.worker} --region {name.region} --pool {name.pool} --key <the host's key>"
    )


def _refused(detail: str) -> Refused:
    return Refused(403, RefusalReason.FORBIDDEN, detail, rule=RULE)
