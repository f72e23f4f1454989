"""Tables of identities: tokens, proposals, revocations, certificates, used join requests, and bound keys."""

from __future__ import annotations

from sqlalchemy import JSON, BigInteger, Column, Index, Integer, String, Text

from airbridge.executor.ledger._airflow import UtcDateTime
from airbridge.executor.ledger.models import Base


class TokenRow(Base):
    """A join token (``kind = join``) or an operator's access token (``kind = access``). Only its hash is kept."""

    __tablename__ = "airbridge_token"

    id = Column(String(32), primary_key=True)
    kind = Column(String(16), nullable=False)
    hash = Column(String(64), nullable=False, unique=True)
    owner = Column(String(250), nullable=False)
    # Join: ``{"region": ..., "pool": ...}``; access: a list of scope strings.
    scopes = Column(JSON, nullable=False)
    uses_left = Column(Integer, nullable=True)
    created_at = Column(UtcDateTime, nullable=False)
    expires_at = Column(UtcDateTime, nullable=False)
    last_used_at = Column(UtcDateTime, nullable=True)
    revoked_at = Column(UtcDateTime, nullable=True)
    #: The access token that created it: its revocation revokes this one.
    parent_id = Column(String(32), nullable=True)

    __table_args__ = (Index("idx_airbridge_token_parent", "parent_id"),)


class ProposalRow(Base):
    """Action of an operator that waits, or waited, for the approval of a second one."""

    __tablename__ = "airbridge_proposal"

    id = Column(String(32), primary_key=True)
    # A stable name: ``revocation.add``, ``token.create``, ``policy.change``, ...
    action = Column(String(32), nullable=False)
    # The request's content. Never a secret: a token is made when its proposer collects it.
    payload = Column(JSON, nullable=False)
    # proposed, approved, refused or expired.
    status = Column(String(16), nullable=False)
    owner = Column(String(250), nullable=False)
    # The proposer's token.
    token_id = Column(String(32), nullable=False)
    address = Column(String(64), nullable=True)
    created_at = Column(UtcDateTime, nullable=False)
    expires_at = Column(UtcDateTime, nullable=False)
    decided_at = Column(UtcDateTime, nullable=True)
    decided_by = Column(String(250), nullable=True)
    decided_token_id = Column(String(32), nullable=True)
    # When it took effect.
    done_at = Column(UtcDateTime, nullable=True)

    __table_args__ = (
        Index("idx_airbridge_proposal_status", "status", "expires_at"),
        Index("idx_airbridge_proposal_action", "action", "decided_at"),
    )


class RevocationRow(Base):
    """Revocation of a worker, a certificate, a pool or an issuing CA."""

    __tablename__ = "airbridge_revocation"

    kind = Column(String(16), primary_key=True)
    value = Column(String(128), primary_key=True)
    reason = Column(Text, nullable=False)
    actor = Column(String(250), nullable=False)
    revoked_at = Column(UtcDateTime, nullable=False)


class JoinProofRow(Base):
    """A signed join request that was used: it is not accepted a second time."""

    __tablename__ = "airbridge_join_proof"

    # SHA-256 of its signature, hex.
    digest = Column(String(64), primary_key=True)
    worker_id = Column(String(63), nullable=False)
    used_at = Column(UtcDateTime, nullable=False)


class CertificateRow(Base):
    """A worker's certificate and its place in the chain of renewals."""

    __tablename__ = "airbridge_certificate"

    thumbprint = Column(String(64), primary_key=True)
    worker_id = Column(String(63), nullable=False)
    generation = Column(Integer, nullable=False)
    # Thumbprint of the certificate that it renews; null if an enrolment issued it.
    parent = Column(String(64), nullable=True)
    issued_at = Column(UtcDateTime, nullable=False)
    expires_at = Column(UtcDateTime, nullable=False)
    # First request under it. That ends its parent, and the other children of its parent.
    used_at = Column(UtcDateTime, nullable=True)
    ended_at = Column(UtcDateTime, nullable=True)
    # An `Ending`: why it ended.
    ending = Column(String(16), nullable=True)
    # Host that used it last.
    address = Column(String(64), nullable=True)
    # Host that used it before that one.
    other_address = Column(String(64), nullable=True)
    # First time that its address changed.
    moved_at = Column(UtcDateTime, nullable=True)
    # When it was reported as used from two addresses.
    flagged_at = Column(UtcDateTime, nullable=True)

    __table_args__ = (Index("idx_airbridge_certificate_worker", "worker_id"),)


class BoundKeyRow(Base):
    """Key that a host of a worker's name holds, and the count of its joins."""

    __tablename__ = "airbridge_bound_key"

    worker_id = Column(String(63), primary_key=True)
    region = Column(String(63), nullable=False)
    pool = Column(String(63), nullable=False)
    public_key = Column(String(64), nullable=False)
    owner = Column(String(250), nullable=False)
    counter = Column(BigInteger, nullable=False, server_default="0")
    # The host's own name of its last join: the same one again is a join whose answer was lost.
    attempt = Column(String(64), nullable=True)
    bound_at = Column(UtcDateTime, nullable=False)
    # Last join or renewal.
    seen_at = Column(UtcDateTime, nullable=False)
