"""Generations of a worker's name: which certificate may be used, who may enrol a name that is in use, and the response to a copy.

A copied identity cannot be distinguished from the original until both are used. Then the chain of renewals forks, and the name is
stopped for both, because nothing shows which of them is the original.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import structlog
from sqlalchemy import func, select

from airbridge.control_plane.exceptions import IdentityForked, Refused
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import RefusalReason, WorkerState
from airbridge.executor.ledger import audit, clock, events
from airbridge.executor.ledger.identity import bound_keys, certificates, revocations
from airbridge.executor.ledger.identity.certificates import Ending, Standing
from airbridge.executor.ledger.identity.models import CertificateRow
from airbridge.executor.ledger.models import ItemState, WorkerRow, WorkItemRow

log = structlog.get_logger()

ACTOR: Final = "gateway"
FORKED: Final = "identity.forked"
TWO_ADDRESSES: Final = "identity.two_addresses"


@dataclass(frozen=True, slots=True)
class IdentityRules:
    """Limits of a deployment."""

    #: Time in which requests that were under way when a certificate ended, or a host moved, are no evidence.
    grace: timedelta = timedelta(seconds=60)
    #: Behind a load balancer or a NAT gateway one host may have several addresses; elsewhere ``stop`` is
    #: right.
    two_addresses: Literal["flag", "stop"] = "flag"


@dataclass(frozen=True, slots=True)
class Use:
    """A request: under which certificate, from where."""

    name: WorkerName
    certificate: PeerCertificate
    #: ``host:port``.
    address: str

    @property
    def host(self) -> str:
        """Address without its port."""
        return self.address.rpartition(":")[0][:64]


def is_unchanged(known: certificates.Known | None, use: Use) -> bool:
    """Return whether `admit` would let a use pass without writing anything."""
    return (
        known is not None
        and known.ended_at is None
        and known.used_at is not None
        and known.generation == known.current_generation
        and known.address == use.host
    )


def admit(session: Any, use: Use, rules: IdentityRules) -> None:
    """Let a request pass, and record what is new about it. Raises `Refused`, or `IdentityForked`."""
    thumbprint = use.certificate.thumbprint
    # Two first uses follow one another: the second one finds the first.
    worker = certificates.lock_name(session, use.name.worker)
    known = certificates.find(session, [thumbprint]).get(thumbprint)
    standing = certificates.judge(known, clock.now(session), rules.grace)
    if standing is Standing.UNKNOWN:
        _adopt(session, worker, use)
    elif standing is Standing.FIRST_USE:
        certificates.note_first_use(session, use.name.worker, thumbprint)
    elif standing is Standing.ENDED:
        # A host with a bound key is to join again: if its name was taken by a copy of its disk, that shows by the count.
        raise _joined_since(use) if bound_keys.is_bound(session, use.name.worker) else _ended(use)
    elif standing is Standing.FORKED:
        raise _forked(use, "a certificate was used after it had been replaced")
    _note_address(session, use, rules)


def _adopt(session: Any, worker: WorkerRow | None, use: Use) -> None:
    """Record the certificate that a gateway of the version before has issued, if it is the name's last one."""
    if worker is None or worker.certificate_thumbprint != use.certificate.thumbprint:
        raise Refused(
            401,
            RefusalReason.FORBIDDEN,
            "this certificate is not on record; enrol again",
            rule="record of certificates",
        )
    expires_at = use.certificate.not_after
    row = certificates.issue(session, worker, use.certificate.thumbprint, expires_at, parent=None)
    row.used_at = row.issued_at
    session.flush()


def _note_address(session: Any, use: Use, rules: IdentityRules) -> None:
    row = certificates.note_address(session, use.certificate.thumbprint, use.host, rules.grace)
    if row is None:
        return
    detail = {"certificate": row.thumbprint, "addresses": sorted([row.address, row.other_address])}
    if rules.two_addresses == "stop":
        raise _forked(use, f"one certificate is used from {' and '.join(detail['addresses'])}")
    _write_down(session, TWO_ADDRESSES, use.name, use.address, detail)


def _ended(use: Use) -> Refused:
    return Refused(
        403,
        RefusalReason.REVOKED,
        "this certificate is revoked: superseded: the worker enrolled anew",
        rule=f"generation of {use.name.worker}",
    )


def _joined_since(use: Use) -> Refused:
    return Refused(
        401,
        RefusalReason.FORBIDDEN,
        "this certificate is superseded: the host's key has joined anew since; join again",
        rule=f"generation of {use.name.worker}",
    )


def _forked(use: Use, why: str) -> IdentityForked:
    return IdentityForked(
        use.name.uri,
        f"this worker is revoked: {why}: a copy of its identity is in use",
        lambda session: stop(session, use, why),
        rule=f"chain of certificates of {use.name.worker}",
    )


def stop(session: Any, use: Use, why: str) -> None:
    """Refuse a name to everybody, until an operator takes the revocation back."""
    stop_name(session, use.name, use.address, why, {"certificate": use.certificate.thumbprint})


def stop_name(session: Any, name: WorkerName, address: str, why: str, detail: dict[str, Any]) -> None:
    """Refuse a name to everybody, as `stop` does, on evidence other than a certificate's use."""
    worker = certificates.lock_name(session, name.worker)
    if revocations.is_revoked(session, worker=name.worker) is not None:
        return
    reason = f"identity forked: {why}"
    revocations.add(session, "worker", name.worker, reason, ACTOR)
    certificates.end_all(session, name.worker, Ending.FORKED)
    # The key may have been copied with the identity.
    bound_keys.unbind(session, name.worker)
    if worker is not None:
        worker.rejoin_key = None
    _write_down(session, FORKED, name, address, {**detail, "why": reason})


def _write_down(session: Any, event: str, name: WorkerName, address: str, detail: dict[str, Any]) -> None:
    events.record(session, event, name.uri, region=name.region, worker_id=name.worker, **detail)
    audit.record(
        session,
        event,
        "denied",
        name.uri,
        address=address,
        rule="chain of certificates",
        region=name.region,
        worker_id=name.worker,
        pool=name.pool,
        **detail,
    )
    log.error(event, worker=name.worker, region=name.region, address=address, **detail)


def begin(session: Any, name: WorkerName, proven_key: str | None, lease_seconds: float) -> None:
    """Begin a new generation of a name for an enrolling host. Raises `Refused` if the name belongs to another host, and is alive.

    A name that is not alive may move to another pool. `proven_key` is the rejoin key that the host has proven to hold.
    """
    worker = certificates.lock_name(session, name.worker)
    if worker is None:
        return
    rejoined = worker.rejoin_key is not None and worker.rejoin_key == proven_key
    why = alive(session, worker, lease_seconds)
    if why and (worker.region, worker.pool) != (name.region, name.pool):
        raise Refused(
            403,
            RefusalReason.FORBIDDEN,
            f"worker {name.worker!r} is enrolled in {worker.pool}@{worker.region}, and in use: {why}; names are unique",
        )
    if why and not rejoined:
        raise Refused(
            409,
            RefusalReason.NAME_IN_USE,
            f"worker {name.worker!r} is in use: {why}; the host that enrolled it proves that by the key in its state directory",
            rule="one live generation per name",
        )
    if not rejoined and worker.wanted == "draining":
        # The host that was to drain is gone; maintenance is a promise to people, and ends when they say so.
        worker.wanted, worker.comment = "active", None
    certificates.begin_generation(session, worker, rejoined=rejoined)


def alive(session: Any, worker: WorkerRow, lease_seconds: float) -> str:
    """Return why a name is still its holder's; "" if it was drained, stopped or lost."""
    held = select(func.count(WorkItemRow.id)).where(
        WorkItemRow.worker_id == worker.id, WorkItemRow.state == ItemState.CLAIMED
    )
    if count := session.execute(held).scalar_one():
        return f"it holds {count} work items that are not given up yet"
    if worker.state == WorkerState.STOPPING:
        return ""
    heard = _heard(session, worker)
    silent = None if heard is None else (clock.now(session) - heard).total_seconds()
    if silent is None or silent > lease_seconds:
        return ""
    return f"it was heard of {silent:.0f} s ago, and is given up after {lease_seconds:.0f} s"


def _heard(session: Any, worker: WorkerRow) -> datetime | None:
    """Return the time of the last request of a live certificate's holder."""
    live = select(func.max(CertificateRow.issued_at)).where(
        CertificateRow.worker_id == worker.id,
        CertificateRow.generation == worker.generation,
        CertificateRow.ended_at.is_(None),
        CertificateRow.expires_at > clock.now(session),
    )
    issued = session.execute(live).scalar_one()
    if issued is None and worker.generation > 0:
        return None
    return max((at for at in (issued, worker.last_heartbeat_at) if at is not None), default=None)
