"""Enrolment and renewal of workers: certificates, and the access tokens bound to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from airbridge.control_plane.exceptions import (
    AuthorityEnded,
    InvalidIdentity,
    Refused,
    Unavailable,
    VersionsRefused,
)
from airbridge.control_plane.identity import bound_keys, generations
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.generations import Use
from airbridge.control_plane.identity.iam import REMEMBERED, AwsIam, Proven, may_be_called
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.identity.oidc.join_token import ProvenToken, refuse
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.control_plane.parity import Parity
from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import (
    Credentials,
    EnrolRequest,
    JoinByAwsIam,
    JoinByBoundKey,
    JoinByToken,
    RefusalReason,
    RegionSettings,
    RenewRequest,
    Versions,
)
from airbridge.core.regions import Pool, Region
from airbridge.core.residency import settings as residency
from airbridge.core.task_options import Options
from airbridge.core.wire import rejoin
from airbridge.executor.ledger import audit, events, workers
from airbridge.executor.ledger import clock as ledger_clock
from airbridge.executor.ledger.identity import bound_keys as known_keys
from airbridge.executor.ledger.identity import certificates, join_proofs, revocations, tokens
from airbridge.executor.ledger.identity.models import TokenRow
from airbridge.executor.ledger.models import WorkerRow

log = structlog.get_logger()

# At most one refusal per pool is recorded in this time.
REFUSAL_INTERVAL: Final = timedelta(seconds=5)

# Share of a certificate's life after which workers renew it.
RENEW_AT: Final = 0.5


#: Proof that is verified before the transaction begins: by AWS, or with an issuer's keys.
AnyProof = Proven | ProvenToken


@dataclass(frozen=True, slots=True)
class Joined:
    """Join token or role that a worker joined with, and its owner: the token's, or the role's session."""

    rule: str
    owner: str
    #: Id of the join token, if it was one.
    token: str | None = None


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
    #: Silence after which a name without work may be enrolled by another host.
    lease_seconds: float = 60.0
    #: Options of Airflow's configuration that tasks see.
    task_options: Options = field(default_factory=dict)

    def enrol(
        self, session: Any, request: EnrolRequest, address: str, proven: AnyProof | None = None
    ) -> Credentials:
        """Return a new worker's credentials. Raises `Refused`; the caller then rolls back, and with it the token's use.

        `proven` is the result of `prove`, or of the verification of an issuer's token.
        """
        name = WorkerName(self.trust_domain, request.region, request.pool, request.worker)
        settings = self._settings(name)
        joined = self._join(session, request, proven, name, address)
        self._check(session, name, request.versions)
        rejoin_key = _proven_key(session, request)
        generations.begin(session, name, rejoin_key, self.lease_seconds)
        row, credentials = self._issue(session, name, request, settings)
        row.rejoin_key = rejoin_key
        generation = row.generation
        events.record(
            session,
            "worker.enrolled",
            name.uri,
            region=name.region,
            worker_id=name.worker,
            address=address,
            by=joined.rule,
            owner=joined.owner,
            generation=generation,
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
            owner=joined.owner,
            token=joined.token,
            generation=generation,
            rejoined=row.rejoined,
            expires_at=credentials.expires_at.isoformat(),
        )
        log.info("worker.enrolled", worker=name.worker, region=name.region, pool=name.pool, by=joined.rule)
        return credentials

    def record_refusal(self, session: Any, request: EnrolRequest, refused: VersionsRefused) -> None:
        """Record that a worker was refused for its versions. It has no row: its pool would look as if no worker had come.

        At most once per `REFUSAL_INTERVAL` and pool: the token is not used up, so a worker may retry without limit.
        """
        name = WorkerName(self.trust_domain, request.region, request.pool, request.worker)
        lately = ledger_clock.now(session) - REFUSAL_INTERVAL
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

    def renew(self, session: Any, use: Use, request: RenewRequest) -> Credentials:
        """Return new credentials for an authenticated worker, whose certificate they renew. Raises `Refused`."""
        name, address, parent = use.name, use.address, use.certificate.thumbprint
        settings = self._settings(name)
        if certificates.lock_name(session, name.worker) is None:
            raise _forbidden("this worker is not enrolled")
        if certificates.find(session, [parent])[parent].ended_at is not None:
            # Within the grace this may be a request that was under way; later, `generations.admit` refuses it.
            raise Refused(
                401,
                RefusalReason.FORBIDDEN,
                "this certificate was renewed already, and its successor is in use; enrol again",
                rule="one child per certificate",
            )
        self._check(session, name, request.versions)
        _, credentials = self._issue(session, name, request, settings, parent)
        known_keys.note_seen(session, name.worker)
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
        """Verify a join by IAM role with AWS, before the transaction begins. Raises `Refused` or `Unavailable`."""
        return self.iam.check(request, request.join) if isinstance(request.join, JoinByAwsIam) else None

    def _join(
        self, session: Any, request: EnrolRequest, proven: AnyProof | None, name: WorkerName, address: str
    ) -> Joined:
        if not isinstance(request.join, JoinByBoundKey) and known_keys.is_bound(session, request.worker):
            raise _forbidden(
                f"a key is bound to worker {request.worker!r}: it joins by that alone (join_method 'bound_key')"
            )
        if isinstance(request.join, JoinByToken):
            row = self._redeemed(session, request, request.join.token)
            return Joined(f"join token {row.id}", row.owner, row.id)
        if isinstance(request.join, JoinByBoundKey):
            return self._by_bound_key(session, request, request.join, name, address)
        if proven is None:
            raise _forbidden("the join request was not proven")
        if isinstance(proven, ProvenToken):
            return _by_issuer(session, request, proven)
        if not may_be_called(proven.session, request.worker):
            raise _forbidden(
                f"instance {proven.session} must enrol as {proven.session!r}, or a name that ends with it, "
                f"not as {request.worker!r}"
            )
        if not join_proofs.use(session, proven.digest, request.worker, REMEMBERED):
            raise _forbidden("this signed request was used before; sign a new one")
        return Joined(f"join as {proven.role_arn}", proven.session)

    def _by_bound_key(
        self, session: Any, request: EnrolRequest, join: JoinByBoundKey, name: WorkerName, address: str
    ) -> Joined:
        bound_keys.check_proof(session, request, join)
        # Before its key: a name that was stopped has none, and is to be told why.
        self._check(session, name, request.versions)
        row = known_keys.find(session, name.worker)
        token = None
        if row is None:
            if join.token is None:
                raise bound_keys.missing(name)
            token = self._redeemed(session, request, join.token)
            row = bound_keys.bind_with(session, name, join, token, address)
        bound_keys.check(session, name, join, row, self._pool(name), address)
        rule = (
            f"join token {token.id}, which bound the host's key"
            if token
            else f"bound key, join number {join.counter}"
        )
        return Joined(rule, row.owner, token.id if token else None)

    def _pool(self, name: WorkerName) -> Pool:
        region = self.catalogue.region(name.region)
        pool = region.pool(name.pool) if region else None
        if pool is None:
            raise _forbidden(f"there is no pool {name.pool}@{name.region}")
        return pool

    def _redeemed(self, session: Any, request: EnrolRequest, token: str) -> TokenRow:
        row = tokens.redeem_join(session, token)
        if row is None:
            raise _forbidden("the join token is unknown, expired, revoked or used up")
        allowed = (row.scopes.get("region"), row.scopes.get("pool"))
        if allowed != (request.region, request.pool):
            raise _forbidden(f"this join token is not for pool {request.pool}@{request.region}")
        if row.scopes.get("worker", request.worker) != request.worker:
            raise _forbidden(f"this join token is not for worker {request.worker!r}")
        return row

    def _check(self, session: Any, name: WorkerName, versions: Versions) -> None:
        revoked = revocations.is_revoked(session, worker=name.worker, region=name.region, pool=name.pool)
        if revoked is not None:
            raise Refused(403, RefusalReason.REVOKED, f"this {revoked.kind} is revoked: {revoked.reason}")
        judgement = self.parity.judge(versions)
        if not judgement.may_enrol:
            raise VersionsRefused(403, RefusalReason.PARITY, judgement.detail)

    def _issue(
        self,
        session: Any,
        name: WorkerName,
        request: EnrolRequest | RenewRequest,
        settings: RegionSettings,
        parent: str | None = None,
    ) -> tuple[WorkerRow, Credentials]:
        now, keys = self.clock(), self.keyring.keys
        try:
            leaf = keys.ca.issue_worker(request.csr_pem, name, now, self.lifetime)
        except InvalidIdentity as error:
            raise Refused(400, RefusalReason.MALFORMED, str(error)) from error
        except AuthorityEnded as error:
            raise Unavailable("the control plane's issuing CA has ended", retry_after=60) from error
        certificate = PeerCertificate.of(leaf, leaf.fingerprint(hashes.SHA256()).hex())
        row = workers.enrol(
            session,
            worker_id=name.worker,
            region=name.region,
            pool=name.pool,
            versions=request.versions,
            thumbprint=certificate.thumbprint,
            certificate_expires_at=certificate.not_after,
        )
        certificates.issue(session, row, certificate.thumbprint, certificate.not_after, parent)
        return row, Credentials(
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
            aws_region=region.aws_region or "",
            transport=region.transport_of(pool),
            credentials=region.credentials_of(pool),
            task_credentials=pool.task_role_arn is not None,
            task_options=self._task_options(region, pool),
        )

    def _task_options(self, region: Region, pool: Pool) -> dict[str, dict[str, str]]:
        options = {section: dict(values) for section, values in self.task_options.items()}
        for section, values in residency.task_options(self.catalogue, region, pool).items():
            options.setdefault(section, {}).update(values)
        return options


def _by_issuer(session: Any, request: EnrolRequest, proven: ProvenToken) -> Joined:
    worker, bound = request.worker, proven.worker
    if bound is not None and worker != bound and not worker.endswith(f"-{bound}"):
        raise refuse(
            proven.method,
            f"the token is of {bound[:200]!r}: its worker must enrol under that name, or one that ends with it, not as {worker!r}",
        )
    if not join_proofs.bind(session, proven.digest, worker, proven.lasts, REMEMBERED):
        raise refuse(proven.method, "another worker has joined with this token; get one of its own")
    return Joined(f"join method {proven.method}, issuer {proven.issuer}", proven.subject)


def _forbidden(detail: str) -> Refused:
    return Refused(403, RefusalReason.FORBIDDEN, detail)


def _proven_key(session: Any, request: EnrolRequest) -> str | None:
    """Return the rejoin key that the host has proven to hold, if it sent any. Raises `Refused` for a false proof."""
    proof = request.rejoin
    if proof is None:
        return None
    if not rejoin.is_valid(proof, request.region, request.pool, request.worker, request.csr_pem):
        raise _forbidden("the rejoin proof is not for this request, or not by the key that it names")
    if not join_proofs.use(session, tokens.hash_of(proof.signature), request.worker, REMEMBERED):
        raise _forbidden("this rejoin proof was used before; make a new one")
    return proof.public_key
