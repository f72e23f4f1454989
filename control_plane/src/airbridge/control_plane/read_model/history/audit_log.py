"""Pages of the audit trail (grants, denials, changes), and the state of its seal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from airbridge.executor.ledger import audit
from airbridge.executor.ledger.audit import Filter
from airbridge.executor.ledger.chain import ChainLink, Entry
from airbridge.executor.ledger.models import AuditUnsealedRow


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Page of entries, newest first. `older` is the id to continue from; None on the last page."""

    rows: tuple[Entry, ...]
    older: int | None
    #: End of the chain: the last sealed link.
    head: ChainLink
    #: Number of unsealed entries.
    unsealed: int


def listing(session: Any, which: Filter, *, size: int = 50, before: int | None = None) -> AuditPage:
    """Return a page of the trail. Pages follow ids, not offsets, so that late pages of a long trail are as fast."""
    found = audit.entries(audit.find(session, which, size + 1, before))
    more = len(found) > size
    return AuditPage(
        rows=tuple(found[:size]),
        older=found[size - 1].id if more else None,
        head=audit.head(session),
        unsealed=session.execute(select(func.count()).select_from(AuditUnsealedRow)).scalar_one(),
    )
