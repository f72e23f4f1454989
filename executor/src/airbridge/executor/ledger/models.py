"""The ledger's tables. Names and units are those of the protocol and the docs.

All timestamps come from the database's clock (see `airbridge.executor.ledger.clock`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import declarative_base

from airbridge.executor.ledger._airflow import UtcDateTime

metadata = MetaData(
    naming_convention={
        "ix": "idx_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Base: Any = declarative_base(metadata=metadata)

UUIDText = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
"""A UUID as text, stored natively on Postgres: the type Airflow uses for ``task_instance.id``."""

BigId = BigInteger().with_variant(Integer, "sqlite")


class ItemState(StrEnum):
    """The life of a work item: placed -> sent -> claimed -> settled; released or unsent ones go back to placed."""

    PLACED = "placed"
    SENT = "sent"
    CLAIMED = "claimed"
    SETTLED = "settled"


class Outcome(StrEnum):
    """How a settled work item ended, as the executor tells the scheduler."""

    SUCCESS = "success"
    """The worker reported a final, deferred or rescheduled state: Airflow's own row says which."""
    FAILED = "failed"
    """The attempt failed on the worker (the task's own failure is reported by state, and is SUCCESS or FAILED alike)."""
    LOST = "lost"
    """Fenced after `lost_after` without a heartbeat."""
    CANCELLED = "cancelled"
    """No longer wanted by Airflow (marked, cleared, removed) before or while it ran."""
    UNPLACEABLE = "unplaceable"
    """Placement refused it: unknown region, malformed hint, nobody serves the queue."""


class WorkItemRow(Base):
    """One queueing of one task instance (a deferred or rescheduled one gets a new item each time it is queued)."""

    __tablename__ = "airbridge_work_item"

    id = Column(UUIDText, primary_key=True)
    ti_id = Column(UUIDText, nullable=False)
    dag_id = Column(String(250), nullable=False)
    run_id = Column(String(250), nullable=False)
    task_id = Column(String(250), nullable=False)
    map_index = Column(Integer, nullable=False)
    try_number = Column(Integer, nullable=False)
    queue = Column(String(256), nullable=False)
    region = Column(String(63), nullable=False)
    pool = Column(String(63), nullable=False)
    slots = Column(Integer, nullable=False)
    priority = Column(Integer, nullable=False)
    state = Column(String(16), nullable=False)
    epoch = Column(Integer, nullable=False, server_default="0")
    owner_job_id = Column(Integer, nullable=True)
    """The scheduler job whose executor is told the outcome."""
    workload = Column(JSON, nullable=False)
    """``{"ti": ..., "dag_rel_path": ..., "bundle": {"name", "version"}, "log_path": ...}``"""
    placement = Column(JSON, nullable=False)
    """``{"fallback": [{"region", "pool"}, ...], "fallback_after": seconds, "why": ..., "tried": [region, ...]}``"""
    disconnect = Column(JSON, nullable=False)
    warm = Column(Boolean, nullable=False, server_default=text("true"))
    trace = Column(JSON, nullable=False)
    placed_at = Column(UtcDateTime, nullable=False)
    not_before = Column(UtcDateTime, nullable=False)
    """The outbox leaves the row alone until then (backoff after a failed send)."""
    fallback_at = Column(UtcDateTime, nullable=True)
    """Unclaimed work moves to the next region of its ``fallback`` then; null once there is none left."""
    sends = Column(Integer, nullable=False, server_default="0")
    sent_at = Column(UtcDateTime, nullable=True)
    expires_at = Column(UtcDateTime, nullable=True)
    """When the message sent last expires; the outbox then sends a new one."""
    worker_id = Column(String(63), nullable=True)
    claimed_at = Column(UtcDateTime, nullable=True)
    renewed_at = Column(UtcDateTime, nullable=True)
    lease_until = Column(UtcDateTime, nullable=True)
    lost_at = Column(UtcDateTime, nullable=True)
    """renewed_at + the policy's `lost_after`: from then on the epoch is fenced."""
    started = Column(JSON, nullable=True)
    """The grant's `start_date`, `started_as` and `ti_context`, so that a repeated claim gets the same answer."""
    settled_at = Column(UtcDateTime, nullable=True)
    outcome = Column(String(16), nullable=True)
    detail = Column(Text, nullable=True)
    acknowledged_at = Column(UtcDateTime, nullable=True)
    """When `EdgeExecutor.sync` told its scheduler of the outcome."""

    __table_args__ = (
        Index(
            "uq_airbridge_work_item_open",
            "ti_id",
            unique=True,
            postgresql_where=text("state <> 'settled'"),
            sqlite_where=text("state <> 'settled'"),
        ),
        Index("idx_airbridge_work_item_outbox", "state", "region", "pool", "priority"),
        Index("idx_airbridge_work_item_lost", "state", "lost_at"),
        Index("idx_airbridge_work_item_sync", "owner_job_id", "state", "acknowledged_at"),
        Index("idx_airbridge_work_item_worker", "worker_id", "state"),
        Index("idx_airbridge_work_item_fallback", "region", "state", "fallback_at"),
        Index("idx_airbridge_work_item_task", "dag_id", "run_id", "task_id"),
        Index("idx_airbridge_work_item_placed", "placed_at"),
        Index("idx_airbridge_work_item_settled", "settled_at"),
    )


class RecordRow(Base):
    """A write of a task that has been applied: the idempotency key and the answer it got."""

    __tablename__ = "airbridge_record"

    item_id = Column(UUIDText, primary_key=True)
    epoch = Column(Integer, primary_key=True)
    seq = Column(Integer, primary_key=True)
    status = Column(Integer, nullable=False)
    headers = Column(JSON, nullable=False)
    body = Column(Text, nullable=True)
    applied_at = Column(UtcDateTime, nullable=False)


class WorkerRow(Base):
    """An enrolled worker and what its last heartbeat said."""

    __tablename__ = "airbridge_worker"

    id = Column(String(63), primary_key=True)
    region = Column(String(63), nullable=False)
    pool = Column(String(63), nullable=False)
    state = Column(String(16), nullable=False)
    """What the worker says: active, draining, stopping."""
    wanted = Column(String(16), nullable=False, server_default="active")
    """What the operator wants: active, draining, maintenance, revoked."""
    comment = Column(Text, nullable=True)
    versions = Column(JSON, nullable=False)
    slots_total = Column(Integer, nullable=False, server_default="0")
    slots_used = Column(Integer, nullable=False, server_default="0")
    journal_pending = Column(Integer, nullable=False, server_default="0")
    journal_bytes = Column(BigInteger, nullable=False, server_default="0")
    clock_skew_seconds = Column(Float, nullable=False, server_default="0")
    certificate_thumbprint = Column(String(64), nullable=True)
    certificate_expires_at = Column(UtcDateTime, nullable=True)
    enrolled_at = Column(UtcDateTime, nullable=False)
    last_heartbeat_at = Column(UtcDateTime, nullable=True)
    trust_version = Column(String(64), nullable=True)
    """The trust bundle that it said it goes by: a rotation waits until every live worker has the new one."""

    __table_args__ = (Index("idx_airbridge_worker_region", "region", "pool"),)


class TokenRow(Base):
    """A join token (``kind = join``) or an operator's access token (``kind = access``). Only its hash is kept."""

    __tablename__ = "airbridge_token"

    id = Column(String(32), primary_key=True)
    kind = Column(String(16), nullable=False)
    hash = Column(String(64), nullable=False, unique=True)
    owner = Column(String(250), nullable=False)
    scopes = Column(JSON, nullable=False)
    """Join: ``{"region": ..., "pool": ...}``; access: a list of scope strings."""
    uses_left = Column(Integer, nullable=True)
    created_at = Column(UtcDateTime, nullable=False)
    expires_at = Column(UtcDateTime, nullable=False)
    last_used_at = Column(UtcDateTime, nullable=True)
    revoked_at = Column(UtcDateTime, nullable=True)


class RevocationRow(Base):
    """What is refused from now on: a worker, a certificate, a pool or an issuing CA."""

    __tablename__ = "airbridge_revocation"

    kind = Column(String(16), primary_key=True)
    value = Column(String(128), primary_key=True)
    reason = Column(Text, nullable=False)
    actor = Column(String(250), nullable=False)
    revoked_at = Column(UtcDateTime, nullable=False)


class EventRow(Base):
    """Something that happened to a work item, a worker or an identity: timeline and audit in one table."""

    __tablename__ = "airbridge_event"

    id = Column(BigId, primary_key=True, autoincrement=True)
    at = Column(UtcDateTime, nullable=False)
    """When it happened, or ended: by the database's clock, or, if its source is the edge, by the worker's own."""
    began_at = Column(UtcDateTime, nullable=True)
    """When it began, by the same clock, if it took a time of its own."""
    event = Column(String(64), nullable=False)
    """A stable name: ``item.placed``, ``claim.granted``, ``claim.refused``, ``worker.enrolled``, ..."""
    actor = Column(String(250), nullable=False)
    region = Column(String(63), nullable=True)
    worker_id = Column(String(63), nullable=True)
    item_id = Column(UUIDText, nullable=True)
    ti_id = Column(UUIDText, nullable=True)
    epoch = Column(Integer, nullable=True)
    trace_id = Column(String(32), nullable=True)
    detail = Column(JSON, nullable=False)
    source = Column(String(16), nullable=False, server_default="control")
    """``control`` or ``edge``."""
    uid = Column(UUIDText, nullable=True)
    """The edge's own name of the event: what is reported twice is written once."""
    received_at = Column(UtcDateTime, nullable=True)
    """When an event of the edge reached the control plane, by the database's clock."""
    skew_seconds = Column(Float, nullable=True)
    """How far the edge's clock was ahead of the database's when it reported the event."""

    __table_args__ = (
        Index("idx_airbridge_event_ti", "ti_id"),
        Index("idx_airbridge_event_item", "item_id"),
        Index("idx_airbridge_event_at", "at"),
        Index("idx_airbridge_event_trace", "trace_id"),
        Index("idx_airbridge_event_worker", "worker_id", "at"),
        Index("uq_airbridge_event_uid", "uid", unique=True),
    )


class GatewayRow(Base):
    """A gateway process that says it is there."""

    __tablename__ = "airbridge_gateway"

    id = Column(String(64), primary_key=True)
    version = Column(String(64), nullable=False)
    started_at = Column(UtcDateTime, nullable=False)
    seen_at = Column(UtcDateTime, nullable=False)


class ExportRow(Base):
    """How far the events have been exported, as traces."""

    __tablename__ = "airbridge_export"

    name = Column(String(64), primary_key=True)
    event_id = Column(BigId, nullable=False)
    exported_at = Column(UtcDateTime, nullable=False)


class AuditRow(Base):
    """A grant, denial or change: who, what, from where, by which rule. Only ever added to (see `ledger.audit`)."""

    __tablename__ = "airbridge_audit"

    id = Column(BigId, primary_key=True, autoincrement=True)
    at = Column(UtcDateTime, nullable=False)
    event = Column(String(64), nullable=False)
    """A stable name: ``claim.granted``, ``call.denied``, ``token.created``, ``policy.changed``, ..."""
    verdict = Column(String(16), nullable=False)
    """granted, denied or changed."""
    actor = Column(String(250), nullable=False)
    address = Column(String(64), nullable=True)
    """Where the request came from: address and port of the other end of the TLS connection."""
    rule = Column(String(250), nullable=True)
    """The policy rule, scope or check that decided."""
    region = Column(String(63), nullable=True)
    worker_id = Column(String(63), nullable=True)
    item_id = Column(UUIDText, nullable=True)
    ti_id = Column(UUIDText, nullable=True)
    epoch = Column(Integer, nullable=True)
    trace_id = Column(String(32), nullable=True)
    detail = Column(JSON, nullable=False)

    __table_args__ = (
        Index("idx_airbridge_audit_at", "at"),
        Index("idx_airbridge_audit_event", "event", "at"),
        Index("idx_airbridge_audit_actor", "actor", "at"),
    )


class AuditSealRow(Base):
    """A link of the hash chain over the audit table, in the order of sealing."""

    __tablename__ = "airbridge_audit_seal"

    seq = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False)
    audit_id = Column(BigId, nullable=False, unique=True)
    hash = Column(String(64), nullable=False)
    """SHA-256 of the link before it and of this row's content, hex."""


class AuditUnsealedRow(Base):
    """Audit rows that wait for their seal. A trigger on the audit table fills it, so that no writer can forget to."""

    __tablename__ = "airbridge_audit_unsealed"

    audit_id = Column(BigId, primary_key=True, autoincrement=False)


class JoinProofRow(Base):
    """A signed join request that was used: it is not accepted a second time."""

    __tablename__ = "airbridge_join_proof"

    digest = Column(String(64), primary_key=True)
    """SHA-256 of its signature, hex."""
    worker_id = Column(String(63), nullable=False)
    used_at = Column(UtcDateTime, nullable=False)
