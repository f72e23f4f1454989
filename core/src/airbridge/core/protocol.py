"""Wire protocol between control plane and edge.

How this module may change (version *n* must talk to version *n - 1*, in both directions):

1. A field may be added if it has a default; readers ignore fields they do not know.
2. An enum may gain a member only if every reader of version *n - 1* survives it; readers map
   unknown members to the enum's ``UNKNOWN`` where it has one.
3. A field or member may be removed only one version after nothing reads it any more.
4. Anything else raises `PROTOCOL_VERSION`, and the gateway keeps serving the version before it.

Numbers and texts that the gateway stores have the bounds of their columns: otherwise one worker's request fails a statement
that stores many workers' reports. Long sequences of requests are validated up to their first fault: otherwise a hostile megabyte costs seconds and
gigabytes, because each of its values is reported.

Every request carries the header `VERSION_HEADER`; a gateway answers 426 to a version outside
`SUPPORTED_VERSIONS`. Times are UTC and timezone aware; durations are seconds.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AwareDatetime, BeforeValidator, Field

from airbridge.core.wire.joining import JoinByAwsIam as JoinByAwsIam  # noqa: PLC0414 - exported
from airbridge.core.wire.joining import JoinByBoundKey as JoinByBoundKey  # noqa: PLC0414 - exported
from airbridge.core.wire.joining import JoinByKubernetes as JoinByKubernetes  # noqa: PLC0414 - exported
from airbridge.core.wire.joining import JoinByOidc as JoinByOidc  # noqa: PLC0414 - exported
from airbridge.core.wire.joining import JoinByToken as JoinByToken  # noqa: PLC0414 - exported
from airbridge.core.wire.joining import RejoinProof as RejoinProof  # noqa: PLC0414 - exported
from airbridge.core.wire.message import MOST_COUNTED, Count, Size, VersionText
from airbridge.core.wire.message import CredentialSource as CredentialSource  # noqa: PLC0414 - exported
from airbridge.core.wire.message import Digest as Digest  # noqa: PLC0414 - exported
from airbridge.core.wire.message import Message as Message  # noqa: PLC0414 - exported
from airbridge.core.wire.message import Name as Name  # noqa: PLC0414 - exported
from airbridge.core.wire.message import Transport as Transport  # noqa: PLC0414 - exported
from airbridge.core.wire.triggers import TRIGGER_EVENT as TRIGGER_EVENT  # noqa: PLC0414 - exported
from airbridge.core.wire.triggers import TRIGGERS as TRIGGERS  # noqa: PLC0414 - exported
from airbridge.core.wire.triggers import ItemKind as ItemKind  # noqa: PLC0414 - exported
from airbridge.core.wire.triggers import TriggerSpec as TriggerSpec  # noqa: PLC0414 - exported

PROTOCOL_VERSION = 1
SUPPORTED_VERSIONS = frozenset({1})
VERSION_HEADER = "AirBridge-Protocol"

JsonObject = dict[str, Any]


# --- The work item: the message on a regional queue -------------------------------------------------


class BundleRef(Message):
    """DAG code, named by the digest of its content."""

    name: str
    version: Digest


class WorkItem(Message):
    """ "Task instance X (or its trigger), attempt epoch E, is ready." Signed by the control plane; carries no secret.

    `epoch` is the ledger's epoch when the item was sent: a grant raises it, so the same message
    can never be granted twice. `expires_at` is judged by the gateway against the database's clock.
    """

    item_id: UUID
    ti_id: UUID
    epoch: Count
    region: Name
    pool: Name
    #: A trigger takes none, whatever this is.
    slots: int = Field(default=1, ge=1)
    kind: ItemKind = ItemKind.TASK
    bundle: BundleRef
    dag_rel_path: str
    issued_at: AwareDatetime
    expires_at: AwareDatetime
    trace: dict[str, str] = Field(default_factory=dict)


# --- Claim, grant, refusal ------------------------------------------------------------------------


class RefusalReason(StrEnum):
    """Reason of a refusal. The same word in the API, the table, the metric and the docs."""

    UNKNOWN = "unknown"
    BAD_SIGNATURE = "bad_signature"
    MALFORMED = "malformed"
    EXPIRED = "expired"
    UNKNOWN_ITEM = "unknown_item"
    STALE_EPOCH = "stale_epoch"
    ALREADY_CLAIMED = "already_claimed"
    SETTLED = "settled"
    CANCELLED = "cancelled"
    NOT_STARTABLE = "not_startable"
    WRONG_REGION = "wrong_region"
    WRONG_POOL = "wrong_pool"
    NOT_HOLDER = "not_holder"
    NAME_IN_USE = "name_in_use"
    LOST = "lost"
    FORBIDDEN = "forbidden"
    PARITY = "parity"
    DRAINING = "draining"
    REVOKED = "revoked"
    LIMITED = "limited"
    OVERLOADED = "overloaded"
    INTERNAL = "internal"

    @classmethod
    def _missing_(cls, value: object) -> RefusalReason:
        return cls.UNKNOWN


class Disposition(StrEnum):
    """Action of the worker on the queue message of a refused item."""

    #: Delete it: the ledger will never grant this message.
    DROP = "drop"
    #: Make it visible again: another worker, or this one later, may be granted it.
    RETURN = "return"
    #: Leave it to the queue's redrive policy: it is not one of ours.
    DEAD_LETTER = "dead_letter"


class ClaimRequest(Message):
    """Work items that the worker wants to own: signed, as received, or triggers that a heartbeat's answer offered. At most 100 of each."""

    envelopes: tuple[str, ...] = Field(default=(), max_length=100)
    offered: tuple[LeaseRef, ...] = Field(default=(), max_length=100)


class DisconnectPolicy(Message):
    """Policy of a task for a cut. Seconds; `stop_after` of None lets the task run on however long the cut.

    `replace` false means that a lost attempt is failed without a retry: the work must never run twice.
    """

    lost_after: float = Field(default=900.0, gt=0)
    stop_after: float | None = Field(default=None, gt=0)
    replace: bool = True


class Resources(Message):
    """Request of a task beyond its slots' share: memory in bytes, processors in cores."""

    memory: int | None = Field(default=None, ge=1)
    cpus: float | None = Field(default=None, gt=0)


class StartedAs(Message):
    """The (hostname, unixname, pid) under which the gateway started the task instance in Airflow."""

    hostname: str
    unixname: str
    pid: int


class Grant(Message):
    """Ownership of one work item under `epoch`, with everything the task needs to start.

    `ti` is `airflow.executors.workloads.TaskInstance` and `ti_context` is the Task SDK's `TIRunContext`,
    both as JSON objects: the worker validates them with the Task SDK's own models.
    """

    item_id: UUID
    ti_id: UUID
    epoch: int = Field(ge=1)
    lease_seconds: float
    slots: int = 1
    resources: Resources = Resources()
    ti: JsonObject
    ti_context: JsonObject
    start_date: AwareDatetime
    started_as: StartedAs
    dag_rel_path: str
    bundle: BundleRef
    #: Signature of the bundle's version by the control plane, see `airbridge.core.code.signature`.
    bundle_signature: str | None = None
    log_path: str
    disconnect: DisconnectPolicy = DisconnectPolicy()
    warm: bool = True
    trace: dict[str, str] = Field(default_factory=dict)

    #: The trigger to run, in a grant of one: the task itself is deferred, and `ti_context` is empty.
    trigger: TriggerSpec | None = None

    @property
    def trace_id(self) -> str | None:
        """The trace that the task belongs to, if its W3C context names one."""
        parts = self.trace.get("traceparent", "").split("-")
        return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None


class Refusal(Message):
    """A claim that was not granted. `index` is the envelope's place in the request."""

    index: int
    item_id: UUID | None = None
    reason: RefusalReason
    detail: str
    disposition: Disposition
    retry_after: float | None = None


class ClaimResponse(Message):
    """One grant or one refusal for every envelope."""

    grants: tuple[Grant, ...] = ()
    refusals: tuple[Refusal, ...] = ()


# --- Heartbeat ------------------------------------------------------------------------------------


class LeaseRef(Message):
    """A work item held under an epoch."""

    item_id: UUID
    epoch: Count


class Versions(Message):
    """Versions of a worker; checked against the compatibility matrix."""

    airbridge: VersionText
    airflow: VersionText
    task_sdk: VersionText
    python: VersionText
    protocol: Count = PROTOCOL_VERSION
    image: Digest | None = None
    #: Kinds of work beyond tasks that the worker takes, such as `TRIGGERS`.
    capabilities: tuple[Annotated[str, Field(max_length=32)], ...] = Field(default=(), max_length=32)


class WorkerState(StrEnum):
    """State of a worker, in its heartbeats."""

    ACTIVE = "active"
    DRAINING = "draining"
    STOPPING = "stopping"


EventName = Annotated[str, Field(pattern=r"^[a-z][a-z_]*\.[a-z][a-z_]*$", max_length=64)]

# Edge events in one heartbeat.
MAX_EVENTS = 500
# Characters of the error that a heartbeat reports of the queue.
MAX_QUEUE_ERROR = 500

# Leases in one heartbeat, far beyond the slots of a host.
MAX_LEASES = 10_000


# Detail `exception` of ``task.ended``. A task's code makes the class, so its name is all that a value may not be.
_EXCEPTION_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def exception_name(value: object) -> str:
    """Return the name of an exception's class, or an empty string for anything else: a message may quote data."""
    return value if isinstance(value, str) and _EXCEPTION_NAME.fullmatch(value) else ""


def _count_or_none(value: object) -> object:
    return None if isinstance(value, int) and not 0 <= value <= MOST_COUNTED else value


class EdgeEvent(Message):
    """Something that happened at the edge, as the worker journalled it. Times are the worker's own clock's.

    `uid` is the event's name for good: one that is reported twice is written once. The worker reports what happened
    to an item that it holds; the gateway adds task and trace from the ledger. No value is a secret or a task's output.
    """

    uid: UUID
    event: EventName
    at: AwareDatetime
    began_at: AwareDatetime | None = None
    item_id: UUID | None = None
    #: One out of range, which a forged message may have, is none: it must not cost the worker its heartbeat.
    epoch: Annotated[Count | None, BeforeValidator(_count_or_none)] = None
    detail: dict[str, str | int | float | bool | None] = Field(default_factory=dict)


class Heartbeat(Message):
    """One for the whole worker: renews all its leases. `sent_at` is the edge's clock, used to measure skew only."""

    sent_at: AwareDatetime
    state: WorkerState = WorkerState.ACTIVE
    versions: Versions
    slots_total: Count
    slots_used: Count
    leases: tuple[LeaseRef, ...] = Field(fail_fast=True, default=(), max_length=MAX_LEASES)
    #: Work items that were claimed and whose grant is not journalled yet: not leases, but not given up either.
    claiming: tuple[UUID, ...] = Field(fail_fast=True, default=(), max_length=MAX_LEASES)
    #: `server_time` of the last heartbeat that this process got an answer to. What was granted before it and
    #: is in
    #: neither `leases` nor `claiming`, this process does not know of and will never run.
    answered_at: AwareDatetime | None = None
    journal_pending: Count = 0
    journal_bytes: Size = 0
    trust_version: str = Field(default="", max_length=64)
    #: Error of the last poll, while the worker cannot receive from its queue; empty if it can.
    queue_error: str = Field(default="", max_length=MAX_QUEUE_ERROR)
    #: What has happened since the last heartbeat that was answered, the oldest first.
    events: tuple[EdgeEvent, ...] = Field(fail_fast=True, default=(), max_length=MAX_EVENTS)


class CancelCommand(Message):
    """Stop this task: the control plane no longer wants it (marked, cleared, lost)."""

    kind: Literal["cancel"] = "cancel"
    item_id: UUID
    epoch: int
    reason: RefusalReason
    detail: str = ""


class DrainCommand(Message):
    """Claim nothing more; finish what runs; release what does not."""

    kind: Literal["drain"] = "drain"
    detail: str = ""


class ResumeCommand(Message):
    """Claim again after a drain by the control plane."""

    kind: Literal["resume"] = "resume"


class RenewCommand(Message):
    """Renew the certificate now."""

    kind: Literal["renew"] = "renew"


class TrustCommand(Message):
    """The trust bundle and the work-item verification keys have changed."""

    kind: Literal["trust"] = "trust"
    trust: TrustBundle


class UnknownCommand(Message):
    """A command of a newer control plane: logged and skipped."""

    kind: str


Command = Annotated[
    CancelCommand | DrainCommand | ResumeCommand | RenewCommand | TrustCommand | UnknownCommand,
    Field(union_mode="left_to_right"),
]


class HeartbeatResponse(Message):
    """Leases renewed for `lease_seconds`, except those a `CancelCommand` names."""

    server_time: AwareDatetime
    lease_seconds: float
    interval_seconds: float
    commands: tuple[Command, ...] = ()
    #: So many of the heartbeat's events, from the first, need not be sent again.
    events_taken: int = 0
    #: Triggers, with the epochs of their messages, that a worker without a free slot may claim without a message.
    offers: tuple[LeaseRef, ...] = ()


# --- Exchange: calls of a task to the Task Execution API, in order, once ---------------------------


class Record(Message):
    """One call of a running task to Airflow's Task Execution API, as the worker journalled it.

    (`item_id`, `epoch`, `seq`) is its idempotency key; `seq` starts at 1 and has no gaps among writes.
    `path` is relative to the Execution API's root (``task-instances/<id>/state``); `body` is JSON text.
    """

    item_id: UUID
    epoch: Count
    seq: int = Field(ge=1, le=2**31 - 1)
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    query: str = ""
    body: str | None = None
    recorded_at: AwareDatetime
    #: The task has received the outcome of its writes up to this one, refusals included. A later write that the worker accepted
    #: and the control plane refuses makes a success of the task a failure.
    answered: Count = 0


class ExchangeRequest(Message):
    """Records of any number of tasks; those of one task stand in order."""

    records: tuple[Record, ...] = Field(fail_fast=True, min_length=1, max_length=1000)


class RecordResult(Message):
    """Airflow's response to a record, or the reason that it was fenced off (`refused`), in which case `status` is 409."""

    item_id: UUID
    epoch: int
    seq: int
    status: int
    headers: dict[str, str] = Field(default_factory=dict)
    body: str | None = None
    refused: RefusalReason | None = None


class ExchangeResponse(Message):
    """One result a record, in the order of the request."""

    results: tuple[RecordResult, ...]


class ReleaseRequest(Message):
    """Claimed work items that were never started and go back to the queue (drain, full disk)."""

    items: tuple[LeaseRef, ...] = Field(fail_fast=True, min_length=1, max_length=1000)
    detail: str = ""


class ReleaseResponse(Message):
    """Those that are this worker's no longer."""

    released: tuple[LeaseRef, ...] = ()


# --- Enrolment and renewal ------------------------------------------------------------------------


class EnrolRequest(Message):
    """Request for an identity. The private key never leaves the worker."""

    region: Name
    pool: Name
    worker: Name
    csr_pem: str
    join: Annotated[
        JoinByToken | JoinByAwsIam | JoinByBoundKey | JoinByOidc | JoinByKubernetes,
        Field(discriminator="method"),
    ]
    rejoin: RejoinProof | None = None
    versions: Versions


class RenewRequest(Message):
    """A new certificate and access token for the peer of the mutual TLS connection."""

    csr_pem: str
    versions: Versions


class VerifyKey(Message):
    """A public key (Ed25519, raw, base64url) that signs work items, under its key id."""

    kid: str
    public_key: str


class TrustBundle(Message):
    """CA certificates (PEM) to trust the gateway by, and the keys to verify work items with."""

    version: str
    ca_pem: str
    verify_keys: tuple[VerifyKey, ...]
    #: Keys to verify snapshots with; none before the control plane signs them.
    publish_keys: tuple[VerifyKey, ...] = ()


class RegionSettings(Message):
    """Queue and buckets of a worker of this region and pool."""

    region: Name
    pool: Name
    queue_url: str
    log_bucket: str
    bundle_bucket: str
    endpoint_url: str | None = None
    #: AWS region of queue and buckets; empty if it is `region`.
    aws_region: str = ""
    transport: Transport = "direct"
    #: Source of the AWS credentials for queue and buckets, where the transport is direct.
    credentials: CredentialSource = "host"
    #: Whether the gateway has AWS credentials for the worker's tasks.
    task_credentials: bool = False
    #: Options of Airflow's configuration that tasks see, by section, see `airbridge.core.task_options`.
    task_options: dict[str, dict[str, str]] = Field(default_factory=dict)

    @property
    def aws(self) -> str:
        """AWS region of queue and buckets."""
        return self.aws_region or self.region


class Credentials(Message):
    """The answer to enrolment and renewal. `certificate_pem` is the leaf followed by its issuers."""

    worker_id: Name
    certificate_pem: str
    access_token: str = Field(repr=False)
    expires_at: AwareDatetime
    renew_after: AwareDatetime
    trust: TrustBundle
    settings: RegionSettings


class Problem(Message):
    """The body of every error answer (after RFC 9457)."""

    status: int
    reason: RefusalReason
    detail: str


ClaimRequest.model_rebuild()
TrustCommand.model_rebuild()
HeartbeatResponse.model_rebuild()
