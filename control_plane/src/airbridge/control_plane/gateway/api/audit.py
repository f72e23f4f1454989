"""Audit API for operators: matching rows, and the hash chain for verification by the client."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal
from uuid import UUID

from pydantic import AwareDatetime, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airbridge.control_plane.gateway.api import operator_endpoint
from airbridge.control_plane.gateway.audit.anchors import Anchor
from airbridge.control_plane.gateway.auth.authentication import Operator
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.executor.ledger import audit
from airbridge.executor.ledger.identity import tokens

MOST_ROWS = 1_000


class AuditQuery(operator_endpoint.Body):
    """Filter of audit rows. ``*`` in `event` and `actor` stands for any characters."""

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
    #: Id of an operator's or a join token: what was done with it and, with `children`, with the tokens made under it.
    token: str | None = Field(default=None, pattern=r"^[0-9a-f]{1,32}$")
    children: bool = True
    limit: int = Field(default=100, ge=1, le=MOST_ROWS)
    before: int | None = Field(default=None, ge=1, le=2**63 - 1)


class Part(operator_endpoint.Body):
    """Range of the chain."""

    after: int = Field(default=0, ge=0, le=2**63 - 1)
    limit: int = Field(default=MOST_ROWS, ge=1, le=MOST_ROWS)


@dataclass(frozen=True, slots=True)
class AuditApi:
    """Endpoints ``audit``, ``audit/chain`` and ``audit/anchors``."""

    threads: ThreadPool
    #: For anchors, which lie in buckets and files.
    slow: ThreadPool
    anchors: Callable[[], list[Anchor]] = list

    async def rows(self, request: Request) -> Response:
        """Return matching rows, newest first. A scope with a region allows that region's rows only."""
        wanted = operator_endpoint.query(request, AuditQuery)

        def find(session: Any, operator: Operator) -> Any:
            operator.require("audit:read", **({"region": wanted.region} if wanted.region else {}))
            rows = audit.find(session, _filter(session, wanted), wanted.limit, wanted.before)
            return {"rows": [entry.to_json() for entry in audit.entries(rows)]}

        return await operator_endpoint.answer(self.threads, request, find)

    async def chain(self, request: Request) -> Response:
        """Return links with their rows, in order, and the count of unsealed rows."""
        part = operator_endpoint.query(request, Part)

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

        return await operator_endpoint.answer(self.threads, request, read)

    async def last_anchors(self, request: Request) -> Response:
        """Return the last anchors that were written outside of the database."""

        def allowed(_session: Any, operator: Operator) -> Any:
            operator.require("audit:read")
            return {}

        await operator_endpoint.answer(self.threads, request, allowed)
        found = await self.slow.run(self.anchors)
        return JSONResponse({"anchors": [asdict(anchor) for anchor in found]})


def _filter(session: Any, wanted: AuditQuery) -> audit.Filter:
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
        tokens=_tokens(session, wanted),
    )


def _tokens(session: Any, wanted: AuditQuery) -> tuple[str, ...]:
    if wanted.token is None:
        return ()
    family = tokens.family(session, wanted.token)
    if not family:
        # No rows would look as if the token had done nothing.
        raise operator_endpoint.missing(f"there is no token {wanted.token!r}")
    return tuple(family) if wanted.children else (wanted.token,)


def _end(session: Any) -> dict[str, Any]:
    link = audit.head(session)
    return {"seq": link.seq, "hash": link.hash}


def _waiting(session: Any) -> dict[str, Any]:
    found = audit.waiting(session)
    return {"count": found.count, "oldest_seconds": found.oldest_seconds}
