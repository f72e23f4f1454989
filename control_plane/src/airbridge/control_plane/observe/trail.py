"""The audit trail: what was granted, denied and changed, page by page, and how far it is sealed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from airbridge.executor.ledger import audit
from airbridge.executor.ledger.audit import Filter
from airbridge.executor.ledger.chain import Entry, Link
from airbridge.executor.ledger.models import AuditUnsealedRow


@dataclass(frozen=True, slots=True)
class TrailPage:
    """Entries, the newest first. `older` is the id to go on from; None on the last page."""

    rows: tuple[Entry, ...]
    older: int | None
    head: Link
    """The end of the chain: what was sealed last."""
    unsealed: int
    """Entries that wait for their seal."""


def listing(session: Any, which: Filter, *, size: int = 50, before: int | None = None) -> TrailPage:
    """Return a page of the trail. Pages follow ids, so that a long trail is as quick to read at its end."""
    found = audit.entries(audit.find(session, which, size + 1, before))
    more = len(found) > size
    return TrailPage(
        rows=tuple(found[:size]),
        older=found[size - 1].id if more else None,
        head=audit.head(session),
        unsealed=session.execute(select(func.count()).select_from(AuditUnsealedRow)).scalar_one(),
    )
