"""Audit trail: every grant, denial and change of permissions, append-only and chained by hashes.

A row is written in the transaction that it records, so both are committed or neither. It is not chained there: a chain
has one end, and every claim would wait for it. One sealer (`seal`, in a gateway) chains committed rows a moment later,
in an order of its own. Until then a row is protected by the database alone, which refuses UPDATE, DELETE and TRUNCATE;
from then on any change, removal or reordering of rows breaks the chain.

A chain alone does not show that its end is missing. `ChainLink`s that were written down elsewhere (the gateway logs each as
``audit.sealed``) can: `airbridge.executor.ledger.chain.check` takes them as anchors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import delete, func, insert, or_, select, text

from airbridge.core import json_text
from airbridge.executor.ledger import chain, clock, events
from airbridge.executor.ledger.chain import ChainLink, Entry, Sealed
from airbridge.executor.ledger.models import (
    CLAIM_GRANTED,
    AuditRow,
    AuditSealRow,
    AuditUnsealedRow,
    WorkItemRow,
)

Verdict = Literal["granted", "denied", "changed"]

# The key of Postgres' advisory lock that one sealer holds at a time.
SEALER_LOCK: Final = 0x61627564

# Keys of `detail` that name an operator's token: the one that did it (or that it was done to), the one that revoked, the
# one that made another. Each has an index on Postgres.
TOKEN_KEYS: Final = ("token", "by_token", "parent")
# Postgres proves a partial index usable for lists up to this length.
_LISTED: Final = 100

# Characters that are kept of a text in `detail`.
LONGEST: Final = 500


_ADD: Final = insert(AuditRow.__table__)


def record(
    session: Any, event: str, verdict: Verdict, actor: str, *, at: datetime | None = None, **given: Any
) -> AuditRow:
    """Write down what was granted, denied or changed: see `values`. The caller flushes."""
    written = AuditRow(**values(event, verdict, actor, at=at or clock.now(session), **given))
    session.add(written)
    return written


def values(
    event: str,
    verdict: Verdict,
    actor: str,
    *,
    at: datetime,
    address: str | None = None,
    rule: str | None = None,
    row: WorkItemRow | None = None,
    region: str | None = None,
    worker_id: str | None = None,
    trace_id: str | None = None,
    **detail: Any,
) -> dict[str, Any]:
    """Return the columns of a row. `row` gives a work item's IDs; `detail` must be JSON.

    Never a secret: texts are kept, cut at `LONGEST` characters. Characters that PostgreSQL cannot store are replaced: an index
    on ``detail`` would refuse the row.
    """
    return {
        "at": at,
        "event": event,
        "verdict": verdict,
        "actor": json_text.storable_text(actor[:250]),
        "address": address,
        "rule": json_text.storable_text(rule[:250]) if rule else None,
        "region": region or (row.region if row else None),
        "worker_id": worker_id or (row.worker_id if row else None),
        "item_id": row.id if row else None,
        "ti_id": row.ti_id if row else None,
        "epoch": (row.epoch or 0) if row else None,
        "trace_id": trace_id or (events.trace_id(row.trace) if row else None),
        "detail": {key: _cut(value) for key, value in detail.items() if value is not None},
    }


def add(session: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows, given as `values` returns them, at once and in one statement."""
    if rows:
        session.execute(_ADD, list(rows))


def seal(session: Any, limit: int) -> ChainLink | None:
    """Chain up to `limit` rows that are not chained yet; return the chain's new end, or None if nothing was done.

    Only one sealer works at a time; another one returns None at once.
    """
    if not _alone(session):
        return None
    rows = session.scalars(
        select(AuditRow)
        .join(AuditUnsealedRow, AuditUnsealedRow.audit_id == AuditRow.id)
        .order_by(AuditRow.id)
        .limit(limit)
    ).all()
    if not rows:
        return None
    links = list(chain.links(head(session), [entry(row) for row in rows]))
    session.execute(
        insert(AuditSealRow),
        [
            {"seq": link.seq, "audit_id": row.id, "hash": link.hash}
            for link, row in zip(links, rows, strict=True)
        ],
    )
    session.execute(
        delete(AuditUnsealedRow)
        .where(AuditUnsealedRow.audit_id.in_([row.id for row in rows]))
        .execution_options(synchronize_session=False)
    )
    return links[-1]


def head(session: Any) -> ChainLink:
    """Return the chain's end; `chain.START` if nothing is sealed yet."""
    found = session.execute(
        select(AuditSealRow.seq, AuditSealRow.hash).order_by(AuditSealRow.seq.desc()).limit(1)
    ).first()
    return chain.START if found is None else ChainLink(found.seq, found.hash)


def sealed(session: Any, after: int, limit: int) -> list[Sealed]:
    """Return links after number `after` with their rows, in order. A row that is gone is None."""
    query = (
        select(AuditSealRow, AuditRow)
        .outerjoin(AuditRow, AuditRow.id == AuditSealRow.audit_id)
        .where(AuditSealRow.seq > after)
        .order_by(AuditSealRow.seq)
        .limit(limit)
    )
    return [
        Sealed(ChainLink(link.seq, link.hash), link.audit_id, entry(row) if row is not None else None)
        for link, row in session.execute(query)
    ]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Rows without a seal."""

    count: int
    # Age of the oldest; a healthy sealer leaves none for more than a few seconds.
    oldest_seconds: float


def waiting(session: Any) -> Waiting:
    """Return the rows that are not sealed, by a scan of all rows: also those that were removed from the sealer's queue."""
    unsealed = (
        select(func.count(AuditRow.id), func.min(AuditRow.at))
        .outerjoin(AuditSealRow, AuditSealRow.audit_id == AuditRow.id)
        .where(AuditSealRow.seq.is_(None))
    )
    count, oldest = session.execute(unsealed).one()
    age = (clock.now(session) - oldest).total_seconds() if oldest is not None else 0.0
    return Waiting(int(count), age)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Selection of rows. Patterns are SQL's LIKE with ``*`` for any characters."""

    event: str | None = None
    verdict: str | None = None
    actor: str | None = None
    worker: str | None = None
    region: str | None = None
    item: str | None = None
    ti: str | None = None
    trace: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    #: Leave out claims that were granted: there are as many of them as task instances.
    without_claims: bool = False
    # Ids of tokens: rows that name any of them. Empty: all rows.
    tokens: tuple[str, ...] = ()


def find(session: Any, wanted: Filter, limit: int, before: int | None = None) -> list[AuditRow]:
    """Return matching rows, newest first; `before` is the id to go on from."""
    query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    for condition in _conditions(wanted, before):
        query = query.where(condition)
    return list(session.scalars(query))


def count_workers(session: Any, names: Sequence[str], since: datetime) -> dict[tuple[str, str], int]:
    """Return how many workers events of these names concern from a time on, by region and event."""
    query = (
        select(AuditRow.region, AuditRow.event, func.count(AuditRow.worker_id.distinct()))
        .where(AuditRow.event.in_(names), AuditRow.at >= since)
        .group_by(AuditRow.region, AuditRow.event)
    )
    return {(region, event): count for region, event, count in session.execute(query)}


def entry(row: AuditRow) -> Entry:
    """Return a row's content, as it is hashed and shown."""
    return Entry(
        id=row.id,
        at=row.at,
        event=row.event,
        verdict=row.verdict,
        actor=row.actor,
        address=row.address,
        rule=row.rule,
        region=row.region,
        worker_id=row.worker_id,
        item_id=_text(row.item_id),
        ti_id=_text(row.ti_id),
        epoch=row.epoch,
        trace_id=row.trace_id,
        detail=row.detail,
    )


def entries(rows: Iterable[AuditRow]) -> list[Entry]:
    """Return the content of rows."""
    return [entry(row) for row in rows]


def _conditions(wanted: Filter, before: int | None) -> Sequence[Any]:
    patterns = ((AuditRow.event, wanted.event), (AuditRow.actor, wanted.actor))
    equal = (
        (AuditRow.verdict, wanted.verdict),
        (AuditRow.worker_id, wanted.worker),
        (AuditRow.region, wanted.region),
        (AuditRow.item_id, wanted.item),
        (AuditRow.ti_id, wanted.ti),
        (AuditRow.trace_id, wanted.trace),
    )
    return [
        *(column.like(_like(pattern), escape="\\") for column, pattern in patterns if pattern),
        *(column == value for column, value in equal if value),
        *([AuditRow.at >= wanted.since] if wanted.since else []),
        *([AuditRow.at <= wanted.until] if wanted.until else []),
        *([AuditRow.event != CLAIM_GRANTED] if wanted.without_claims else []),
        *([_names_token(wanted.tokens)] if wanted.tokens else []),
        *([AuditRow.id < before] if before is not None else []),
    ]


def _names_token(tokens: Sequence[str]) -> Any:
    parts = [tokens[start : start + _LISTED] for start in range(0, len(tokens), _LISTED)]
    return or_(*(AuditRow.detail[key].as_string().in_(part) for key in TOKEN_KEYS for part in parts))


def _like(pattern: str) -> str:
    literal = pattern.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return literal.replace("*", "%")


def _alone(session: Any) -> bool:
    """Take the sealer's lock until the transaction ends. SQLite has a single writer anyway."""
    if session.get_bind().dialect.name != "postgresql":
        return True
    return bool(
        session.execute(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": SEALER_LOCK}).scalar()
    )


def _cut(value: Any) -> Any:
    return json_text.storable(value[:LONGEST] if isinstance(value, str) else value)


def _text(value: str | UUID | None) -> str | None:
    return None if value is None else str(value)
