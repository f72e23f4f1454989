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
    Date,
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

# A UUID as text, stored natively on Postgres: the type Airflow uses for ``task_instance.id``.
UUIDText = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")

BigId = BigInteger().with_variant(Integer, "sqlite")


class ItemState(StrEnum):
    """The life of a work item: placed -> sent -> claimed -> settled; released or unsent ones go back to placed."""

    PLACED = "placed"
    SENT = "sent"
    CLAIMED = "claimed"
    SETTLED = "settled"


class Outcome(StrEnum):
    """Outcome of a settled work item, as reported to the scheduler."""

    # The worker reported a final, deferred or rescheduled state: Airflow's own row has it.
    SUCCESS = "success"
    # The attempt failed on the worker (the task's own failure is reported by state, and is SUCCESS or FAILED
    # alike).
    FAILED = "failed"
    # Fenced after `lost_after` without a heartbeat.
    LOST = "lost"
    # No longer wanted by Airflow (marked, cleared, removed) before or while it ran.
    CANCELLED = "cancelled"
    # Placement refused it: unknown region, malformed hint, queue without a pool.
    UNPLACEABLE = "unplaceable"


_OPEN_TASK = text("state <> 'settled' AND kind = 'task'")
_OPEN_TRIGGER = text("state <> 'settled' AND trigger_id IS NOT NULL")


class WorkItemRow(Base):
    """One queueing of one task instance (a deferred or rescheduled one gets a new item each time it is queued), or its trigger."""

    __tablename__ = "airbridge_work_item"

    id = Column(UUIDText, primary_key=True)
    # An `ItemKind`. A trigger's row has the deferred task instance's names, and no slots.
    kind = Column(String(16), nullable=False, server_default="task")
    # Airflow's trigger, of a trigger's row.
    trigger_id = Column(Integer, nullable=True)
    ti_id = Column(UUIDText, nullable=False)
    dag_id = Column(String(250), nullable=False)
    run_id = Column(String(250), nullable=False)
    task_id = Column(String(250), nullable=False)
    map_index = Column(Integer, nullable=False)
    try_number = Column(Integer, nullable=False)
    queue = Column(String(256), nullable=False)
    region = Column(String(63), nullable=False)
    pool = Column(String(63), nullable=False)
    # Team of the bundle, by the catalogue at the time of placing.
    team = Column(String(63), nullable=False, server_default="default")
    slots = Column(Integer, nullable=False)
    # Slot-seconds of the claims that have ended: slots times the time from grant to report, release or fencing.
    slot_seconds = Column(Float, nullable=False, server_default="0")
    priority = Column(Integer, nullable=False)
    # Names of the limits that the task's hints give, sorted, with a space between them; null without one.
    limits = Column(String(1024), nullable=True)
    state = Column(String(16), nullable=False)
    epoch = Column(Integer, nullable=False, server_default="0")
    # Scheduler job that the outcome is reported to.
    owner_job_id = Column(Integer, nullable=True)
    # ``{"ti": ..., "dag_rel_path": ..., "bundle": {"name", "version"}, "log_path": ...}``
    workload = Column(JSON, nullable=False)
    # ``{"fallback": [{"region", "pool"}, ...], "fallback_after": seconds, "why": ..., "tried": [region,
    # ...]}``
    placement = Column(JSON, nullable=False)
    disconnect = Column(JSON, nullable=False)
    warm = Column(Boolean, nullable=False, server_default=text("true"))
    trace = Column(JSON, nullable=False)
    placed_at = Column(UtcDateTime, nullable=False)
    # The outbox leaves the row alone until then (backoff after a failed send).
    not_before = Column(UtcDateTime, nullable=False)
    # Unclaimed work moves to the next region of its ``fallback`` then; null once there is none left.
    fallback_at = Column(UtcDateTime, nullable=True)
    sends = Column(Integer, nullable=False, server_default="0")
    sent_at = Column(UtcDateTime, nullable=True)
    # Expiry of the last message; the outbox then sends a new one.
    expires_at = Column(UtcDateTime, nullable=True)
    worker_id = Column(String(63), nullable=True)
    claimed_at = Column(UtcDateTime, nullable=True)
    renewed_at = Column(UtcDateTime, nullable=True)
    lease_until = Column(UtcDateTime, nullable=True)
    # renewed_at + the policy's `lost_after`: from then on the epoch is fenced.
    lost_at = Column(UtcDateTime, nullable=True)
    # The grant's `start_date`, `started_as` and `ti_context`, so that a repeated claim gets the same answer.
    started = Column(JSON, nullable=True)
    settled_at = Column(UtcDateTime, nullable=True)
    # Set when the row is settled; `cancelled` on a claimed row: its worker has been ordered to stop the task.
    outcome = Column(String(16), nullable=True)
    detail = Column(Text, nullable=True)
    # Time at which `EdgeExecutor.sync` reported the outcome.
    acknowledged_at = Column(UtcDateTime, nullable=True)

    __table_args__ = (
        Index(
            "uq_airbridge_work_item_open",
            "ti_id",
            unique=True,
            postgresql_where=_OPEN_TASK,
            sqlite_where=_OPEN_TASK,
        ),
        Index(
            "uq_airbridge_work_item_trigger",
            "trigger_id",
            unique=True,
            postgresql_where=_OPEN_TRIGGER,
            sqlite_where=_OPEN_TRIGGER,
        ),
        Index("idx_airbridge_work_item_outbox", "state", "region", "pool", "priority"),
        Index("idx_airbridge_work_item_lost", "state", "lost_at"),
        Index("idx_airbridge_work_item_sync", "owner_job_id", "state", "acknowledged_at"),
        Index("idx_airbridge_work_item_worker", "worker_id", "state"),
        Index("idx_airbridge_work_item_fallback", "region", "state", "fallback_at"),
        Index("idx_airbridge_work_item_task", "dag_id", "run_id", "task_id"),
        Index("idx_airbridge_work_item_placed", "placed_at"),
        Index("idx_airbridge_work_item_settled", "settled_at"),
        Index(
            "idx_airbridge_work_item_limits",
            "state",
            postgresql_where=text("limits IS NOT NULL"),
            sqlite_where=text("limits IS NOT NULL"),
        ),
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
    """Enrolled worker, with the content of its last heartbeat."""

    __tablename__ = "airbridge_worker"

    id = Column(String(63), primary_key=True)
    region = Column(String(63), nullable=False)
    pool = Column(String(63), nullable=False)
    # State reported by the worker: active, draining, stopping.
    state = Column(String(16), nullable=False)
    # State ordered by the operator: active, draining, maintenance, revoked.
    wanted = Column(String(16), nullable=False, server_default="active")
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
    # Trust bundle reported by the worker: a rotation waits until every live worker has the new one.
    trust_version = Column(String(64), nullable=True)
    # Error of the worker's last poll, while it cannot receive from its queue.
    queue_error = Column(Text, nullable=True)
    # Raised at every enrolment of the name: certificates of older generations are refused.
    generation = Column(Integer, nullable=False, server_default="0")
    # Public key (Ed25519, base64url) of the host that enrolled the name: it alone may enrol a live name anew.
    rejoin_key = Column(String(64), nullable=True)
    # Whether the generation began with a proof of that key, so that the one before it was the same host's.
    rejoined = Column(Boolean, nullable=False, server_default=text("false"))

    __table_args__ = (Index("idx_airbridge_worker_region", "region", "pool"),)


class EventRow(Base):
    """Something that happened to a work item, a worker or an identity: timeline and audit in one table."""

    __tablename__ = "airbridge_event"

    id = Column(BigId, primary_key=True, autoincrement=True)
    # Time or end of the event: by the database's clock, or, if its source is the edge, by the worker's.
    at = Column(UtcDateTime, nullable=False)
    # Start of the event by the same clock, if it has a duration.
    began_at = Column(UtcDateTime, nullable=True)
    # A stable name: ``item.placed``, ``claim.granted``, ``claim.refused``, ``worker.enrolled``, ...
    event = Column(String(64), nullable=False)
    actor = Column(String(250), nullable=False)
    region = Column(String(63), nullable=True)
    worker_id = Column(String(63), nullable=True)
    item_id = Column(UUIDText, nullable=True)
    ti_id = Column(UUIDText, nullable=True)
    epoch = Column(Integer, nullable=True)
    trace_id = Column(String(32), nullable=True)
    detail = Column(JSON, nullable=False)
    # ``control`` or ``edge``.
    source = Column(String(16), nullable=False, server_default="control")
    # The edge's own name of the event: what is reported twice is written once.
    uid = Column(UUIDText, nullable=True)
    # Arrival of an edge event in the control plane, by the database's clock.
    received_at = Column(UtcDateTime, nullable=True)
    # Lead of the edge's clock over the database's at the time of the report, in seconds.
    skew_seconds = Column(Float, nullable=True)
    # Of ``task.ended``: what the task's process used, as its worker reports it.
    cpu_seconds = Column(Float, nullable=True)
    peak_memory_bytes = Column(BigInteger, nullable=True)
    # Size of what the event moved, in bytes: an XCom, a task's log, or code.
    moved_bytes = Column(BigInteger, nullable=True)

    __table_args__ = (
        Index("idx_airbridge_event_ti", "ti_id"),
        Index("idx_airbridge_event_item", "item_id"),
        Index("idx_airbridge_event_at", "at"),
        Index("idx_airbridge_event_trace", "trace_id"),
        Index("idx_airbridge_event_worker", "worker_id", "at"),
        Index("uq_airbridge_event_uid", "uid", unique=True),
    )


class UsageRow(Base):
    """Usage of work items that the retention has deleted, by the day on which they were settled (UTC)."""

    __tablename__ = "airbridge_usage"

    day = Column(Date, primary_key=True)
    team = Column(String(63), primary_key=True)
    dag_id = Column(String(250), primary_key=True)
    region = Column(String(63), primary_key=True)
    pool = Column(String(63), primary_key=True)
    items = Column(BigInteger, nullable=False)
    slot_seconds = Column(Float, nullable=False)
    cpu_seconds = Column(Float, nullable=False)
    peak_memory_bytes = Column(BigInteger, nullable=False)
    xcom_bytes = Column(BigInteger, nullable=False, server_default="0")
    log_bytes = Column(BigInteger, nullable=False, server_default="0")
    code_bytes = Column(BigInteger, nullable=False, server_default="0")


class LimitRow(Base):
    """Lock of a limit: a claim holds it from the count of what runs to its commit."""

    __tablename__ = "airbridge_limit"

    name = Column(String(63), primary_key=True)


class LimitStartRow(Base):
    """Start of a task under a limit that has a rate. Rows older than a minute are deleted by the next start."""

    __tablename__ = "airbridge_limit_start"

    id = Column(BigId, primary_key=True, autoincrement=True)
    name = Column(String(63), nullable=False)
    started_at = Column(UtcDateTime, nullable=False)

    __table_args__ = (Index("idx_airbridge_limit_start", "name", "started_at"),)


class GatewayRow(Base):
    """Liveness of a gateway process."""

    __tablename__ = "airbridge_gateway"

    id = Column(String(64), primary_key=True)
    version = Column(String(64), nullable=False)
    started_at = Column(UtcDateTime, nullable=False)
    seen_at = Column(UtcDateTime, nullable=False)


class ExportRow(Base):
    """Position of the trace export in the events."""

    __tablename__ = "airbridge_export"

    name = Column(String(64), primary_key=True)
    event_id = Column(BigId, nullable=False)
    exported_at = Column(UtcDateTime, nullable=False)


# The event of a granted claim, in the events and in the audit trail.
CLAIM_GRANTED = "claim.granted"


class AuditRow(Base):
    """A grant, denial or change: who, what, from where, by which rule. Only ever added to (see `ledger.audit`)."""

    __tablename__ = "airbridge_audit"

    id = Column(BigId, primary_key=True, autoincrement=True)
    at = Column(UtcDateTime, nullable=False)
    # A stable name: ``claim.granted``, ``call.denied``, ``token.created``, ``policy.changed``, ...
    event = Column(String(64), nullable=False)
    # granted, denied or changed.
    verdict = Column(String(16), nullable=False)
    actor = Column(String(250), nullable=False)
    # Origin of the request: address and port of the peer of the TLS connection.
    address = Column(String(64), nullable=True)
    # The policy rule, scope or check that decided.
    rule = Column(String(250), nullable=True)
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
        # The newest denials and changes, which lie between any number of granted claims.
        Index(
            "idx_airbridge_audit_without_claims",
            "id",
            postgresql_where=text(f"event <> '{CLAIM_GRANTED}'"),
            sqlite_where=text(f"event <> '{CLAIM_GRANTED}'"),
        ),
    )


class AuditSealRow(Base):
    """A link of the hash chain over the audit table, in the order of sealing."""

    __tablename__ = "airbridge_audit_seal"

    seq = Column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False)
    audit_id = Column(BigId, nullable=False, unique=True)
    # SHA-256 of the link before it and of this row's content, hex.
    hash = Column(String(64), nullable=False)


class AuditUnsealedRow(Base):
    """Audit rows that wait for their seal. A trigger on the audit table fills it, so that no writer can forget to."""

    __tablename__ = "airbridge_audit_unsealed"

    audit_id = Column(BigId, primary_key=True, autoincrement=False)


class SnapshotRow(Base):
    """Signature of a published snapshot, over bundle name, version and publisher."""

    __tablename__ = "airbridge_snapshot"

    bundle = Column(String(250), primary_key=True)
    version = Column(String(80), primary_key=True)
    publisher = Column(String(250), nullable=False)
    signature = Column(Text, nullable=False)
    signed_at = Column(UtcDateTime, nullable=False)


class BundleRow(Base):
    """Current version of a bundle."""

    __tablename__ = "airbridge_bundle"

    name = Column(String(250), primary_key=True)
    # Counts changes, so that of two publishers that saw the same version one loses.
    serial = Column(Integer, nullable=False)
    version = Column(String(80), nullable=False)
    previous = Column(String(80), nullable=True)
    publisher = Column(String(250), nullable=False)
    published_at = Column(UtcDateTime, nullable=False)


class EnvironmentRow(Base):
    """Environment of a bundle that was built elsewhere and pushed: its manifest and lock. `inputs` is what it was built from."""

    __tablename__ = "airbridge_environment"

    bundle = Column(String(250), primary_key=True)
    inputs = Column(String(64), primary_key=True)
    manifest = Column(Text, nullable=False)
    lock = Column(Text, nullable=False)
    publisher = Column(String(250), nullable=False)
    pushed_at = Column(UtcDateTime, nullable=False)
