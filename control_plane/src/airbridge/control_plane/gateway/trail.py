"""The audit trail for operators: rows that match, and the chain, so that they can check it themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field
from starlette.requests import Request
from starlette.responses import Response

from airbridge.control_plane.gateway import operating
from airbridge.control_plane.gateway.authentication import Operator
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.executor.ledger import audit

MOST_ROWS = 1_000


class Wanted(operating.Body):
    """Which rows. ``*`` in `event` and `actor` stands for any characters."""

    event: str | None = Field(default=None, max_length=64)
    verdict: Literal["granted", "denied", "changed"] | None = None
    actor: str | None = Field(default=None, max_length=250)
    worker: str | None = Field(default=None, max_length=63)
    region: str | None = Field(default=None, max_length=63)
    item: UUID | None = None
    ti: UUID | None = None
    trace: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    limit: int = Field(default=100, ge=1, le=MOST_ROWS)
    before: int | None = Field(default=None, ge=1, le=2**63 - 1)


class Part(operating.Body):
    """Which part of the chain."""

    after: int = Field(default=0, ge=0, le=2**63 - 1)
    limit: int = Field(default=MOST_ROWS, ge=1, le=MOST_ROWS)


@dataclass(frozen=True, slots=True)
class Trail:
    """Endpoints ``audit`` and ``audit/chain``."""

    lane: Lane

    async def rows(self, request: Request) -> Response:
        """Return matching rows, newest first. A scope with a region sees that region's rows only."""
        wanted = operating.query(request, Wanted)

        def find(session: Any, operator: Operator) -> Any:
            operator.require("audit:read", **({"region": wanted.region} if wanted.region else {}))
            rows = audit.find(session, _filter(wanted), wanted.limit, wanted.before)
            return {"rows": [entry.to_json() for entry in audit.entries(rows)]}

        return await operating.answer(self.lane, request, find)

    async def chain(self, request: Request) -> Response:
        """Return links with their rows, in order, and what is not sealed yet."""
        part = operating.query(request, Part)

        def read(session: Any, operator: Operator) -> Any:
            operator.require("audit:read")
            links = audit.sealed(session, part.after, part.limit)
            return {
                "links": [
                    {
                        "seq": each.link.seq,
                        "hash": each.link.hash,
                        "audit_id": each.audit_id,
                        "row": each.entry.to_json() if each.entry else None,
                    }
                    for each in links
                ],
                "end": _end(session),
                "waiting": _waiting(session) if len(links) < part.limit else None,
            }

        return await operating.answer(self.lane, request, read)


def _filter(wanted: Wanted) -> audit.Filter:
    return audit.Filter(
        event=wanted.event,
        verdict=wanted.verdict,
        actor=wanted.actor,
        worker=wanted.worker,
        region=wanted.region,
        item=str(wanted.item) if wanted.item else None,
        ti=str(wanted.ti) if wanted.ti else None,
        trace=wanted.trace,
        since=wanted.since,
        until=wanted.until,
    )


def _end(session: Any) -> dict[str, Any]:
    link = audit.head(session)
    return {"seq": link.seq, "hash": link.hash}


def _waiting(session: Any) -> dict[str, Any]:
    found = audit.waiting(session)
    return {"count": found.count, "oldest_seconds": found.oldest_seconds}
