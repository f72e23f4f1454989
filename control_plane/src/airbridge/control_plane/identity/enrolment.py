"""Enrolment and renewal: how a worker gets its certificate and the access token bound to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from airbridge.control_plane.exceptions import InvalidIdentity, Refused, VersionsRefused
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.iam import REMEMBERED, AwsIam, Proven
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.control_plane.parity import Parity
from airbridge.executor.ledger import audit, events, join_proofs, revocations, tokens, workers
from airbridge.executor.ledger import clock as ledger_clock
from airbridge.executor.ledger.models import WorkerRow
from airbridge.executor.protocol import (
    Credentials,
    EnrolRequest,
    JoinByAwsIam,
    JoinByToken,
    RefusalReason,
    RegionSettings,
    RenewRequest,
    Versions,
)
from airbridge.executor.regions import Catalogue

log = structlog.get_logger()

REFUSALS_APART: Final = timedelta(seconds=5)
"""At most one refusal for a pool is written down in this time."""

RENEW_AT: Final = 0.5
"""Share of a certificate's life after which a worker renews it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """By what a worker joined, and whose that is: a token's owner, or a role's session."""

    rule: str
    whose: str


@dataclass(frozen=True, slots=True)
class Enrolment:
    """Issues credentials. Takes an open session and never commits."""

    keyring: Keyring
    iam: AwsIam
    parity: Parity
    catalogue: Catalogue
    trust_domain: str
    lifetime: timedelta
    clock: Callable[[], datetime]

    def enrol(
        self, session: Any, request: EnrolRequest, address: str, proven: Proven | None = None
    ) -> Credentials:
        """Return a new worker's credentials. Raises `Refused`; the caller then rolls the token's use back.

        `proven` is what `prove` said of the request.
        """
        name = WorkerName(self.trust_domain, request.region, request.pool, request.worker)
        settings = self._settings(name)
        joined = self._join(session, request, proven)
        self._check(session, name, request.versions)
        self._supersede(session, name)
        credentials = self._issue(session, name, request.csr_pem, request.versions, settings)
        events.record(
            session,
            "worker.enrolled",
            name.uri,
            region=name.region,
            worker_id=name.worker,
            address=address,
            by=joined.rule,
            whose=joined.whose,
        )
        audit.record(
            session,
            "worker.enrolled",
            "granted",
            name.uri,
            address=address,
            rule=joined.rule,
            region=name.region,
            worker_id=name.worker,
            whose=joined.whose,
            expires_at=credentials.expires_at.isoformat(),
        )
        log.info("worker.enrolled", worker=name.worker, region=name.region, pool=name.pool, by=joined.rule)
        return credentials

    def note_refusal(self, session: Any, request: EnrolRequest, refused: VersionsRefused) -> None:
        """Write down that a worker was sent away: it has no row, and its pool would look as if nobody had come.

        Not each time: its token is not used up, and whoever holds it may ask as often as they like.
        """
        name = WorkerName(self.trust_domain, request.region, request.pool, request.worker)
        lately = ledger_clock.now(session) - REFUSALS_APART
        noted = events.since(session, "enrol.refused", lately, region=name.region)
        if any(each.detail.get("pool") == name.pool for each in noted):
            return
        events.record(
            session,
            "enrol.refused",
            name.uri,
            region=name.region,
            worker_id=name.worker,
            pool=name.pool,
            runs=request.versions.airbridge,
            why=refused.detail[:500],
        )

    def renew(self, session: Any, name: WorkerName, request: RenewRequest, address: str) -> Credentials:
        """Return new credentials for an authenticated worker. Raises `Refused`."""
        settings = self._settings(name)
        if workers.get(session, name.worker) is None:
            raise _forbidden("this worker is not enrolled")
        self._check(session, name, request.versions)
        credentials = self._issue(session, name, request.csr_pem, request.versions, settings)
        events.record(session, "worker.renewed", name.uri, region=name.region, worker_id=name.worker)
        audit.record(
            session,
            "worker.renewed",
            "granted",
            name.uri,
            address=address,
            rule="certificate of the connection",
            region=name.region,
            worker_id=name.worker,
            expires_at=credentials.expires_at.isoformat(),
        )
        log.info("worker.renewed", worker=name.worker, region=name.region)
        return credentials

    def prove(self, request: EnrolRequest) -> Proven | None:
        """Ask whoever must be asked before the transaction begins. Raises `Refused` or `Unavailable`."""
        return self.iam.check(request, request.join) if isinstance(request.join, JoinByAwsIam) else None

    def _join(self, session: Any, request: EnrolRequest, proven: Proven | None) -> Joined:
        if isinstance(request.join, JoinByToken):
            return self._by_token(session, request, request.join)
        if proven is None:
            raise _forbidden("the join request was not proven")
        if not join_proofs.use(session, proven.digest, request.worker, REMEMBERED):
            raise _forbidden("this signed request was used before; sign a new one")
        return Joined(f"join as {proven.role_arn}", proven.session)

    def _by_token(self, session: Any, request: EnrolRequest, join: JoinByToken) -> Joined:
        row = tokens.redeem_join(session, join.token)
        if row is None:
            raise _forbidden("no such join token, or it has expired, was revoked or is used up")
        allowed = (row.scopes.get("region"), row.scopes.get("pool"))
        if allowed != (request.region, request.pool):
            raise _forbidden(f"this join token is not for pool {request.pool}@{request.region}")
        return Joined(f"join token {row.id}", row.owner)

    def _check(self, session: Any, name: WorkerName, versions: Versions) -> None:
        revoked = revocations.is_revoked(session, worker=name.worker, region=name.region, pool=name.pool)
        if revoked is not None:
            raise Refused(403, RefusalReason.REVOKED, f"this {revoked.kind} is revoked: {revoked.reason}")
        judgement = self.parity.judge(versions)
        if not judgement.may_enrol:
            raise VersionsRefused(403, RefusalReason.PARITY, judgement.detail)

    def _supersede(self, session: Any, name: WorkerName) -> None:
        """One name, one holder: enrolling a name anew ends the certificate it had."""
        row: WorkerRow | None = workers.get(session, name.worker)
        if row is None:
            return
        if (row.region, row.pool) != (name.region, name.pool):
            raise _forbidden(
                f"worker {name.worker!r} is enrolled in {row.pool}@{row.region}; names are unique"
            )
        if row.certificate_thumbprint and row.certificate_expires_at > self.clock():
            reason = "superseded: the worker enrolled anew"
            revocations.add(session, "certificate", row.certificate_thumbprint, reason, name.uri)
            audit.record(
                session,
                "certificate.revoked",
                "changed",
                name.uri,
                region=name.region,
                worker_id=name.worker,
                certificate=row.certificate_thumbprint,
                why=reason,
            )

    def _issue(
        self, session: Any, name: WorkerName, csr_pem: str, versions: Versions, settings: RegionSettings
    ) -> Credentials:
        now, keys = self.clock(), self.keyring.keys
        try:
            leaf = keys.ca.issue_worker(csr_pem, name, now, self.lifetime)
        except InvalidIdentity as error:
            raise Refused(400, RefusalReason.MALFORMED, str(error)) from error
        certificate = PeerCertificate.of(leaf, leaf.fingerprint(hashes.SHA256()).hex())
        workers.enrol(
            session,
            worker_id=name.worker,
            region=name.region,
            pool=name.pool,
            versions=versions,
            thumbprint=certificate.thumbprint,
            certificate_expires_at=certificate.not_after,
        )
        return Credentials(
            worker_id=name.worker,
            certificate_pem=leaf.public_bytes(Encoding.PEM).decode() + keys.ca.chain_pem,
            access_token=keys.tokens.mint(name, certificate, now, self.lifetime),
            expires_at=certificate.not_after,
            renew_after=now + self.lifetime * RENEW_AT,
            trust=keys.trust,
            settings=settings,
        )

    def _settings(self, name: WorkerName) -> RegionSettings:
        region = self.catalogue.region(name.region)
        pool = region.pool(name.pool) if region else None
        if region is None or pool is None:
            known = ", ".join(f"{each.name}@{where.name}" for where, each in self.catalogue.places())
            raise Refused(
                400, RefusalReason.WRONG_POOL, f"there is no pool {name.pool}@{name.region}; known: {known}"
            )
        return RegionSettings(
            region=name.region,
            pool=name.pool,
            queue_url=pool.queue_url,
            log_bucket=region.log_bucket,
            bundle_bucket=region.bundle_bucket,
            endpoint_url=region.endpoint_url,
        )


def _forbidden(detail: str) -> Refused:
    return Refused(403, RefusalReason.FORBIDDEN, detail)
