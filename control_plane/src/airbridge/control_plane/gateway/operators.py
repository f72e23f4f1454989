"""The operators' listener: workers, tokens and DAG pushes, for people and CI with an access token of their own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airbridge.control_plane import orders
from airbridge.control_plane.exceptions import InvalidScope, Refused, Unavailable
from airbridge.control_plane.gateway import health, operating, requests
from airbridge.control_plane.gateway.authentication import Operator, authenticate_operator
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.control_plane.gateway.listener import REQUEST_SECONDS, Guard, Handler, application
from airbridge.control_plane.gateway.live_policy import LivePolicy
from airbridge.control_plane.gateway.metrics import CONTENT_TYPE, Metrics
from airbridge.control_plane.gateway.observing import Observing
from airbridge.control_plane.gateway.revoking import Revoking
from airbridge.control_plane.gateway.trail import Trail
from airbridge.control_plane.identity import tokens as issuing
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.observe import workers as observed
from airbridge.control_plane.orders import Order
from airbridge.executor.exceptions import BundleError
from airbridge.executor.ledger import audit, clock, events, tokens, workers
from airbridge.executor.ledger.models import TokenRow, WorkerRow
from airbridge.executor.protocol import Name, RefusalReason

ROOT: Final = "/operator/v1"
SMALL_BODY: Final = 64 * 1024
PUSH_BODY: Final = 256 * 1024 * 1024
PUSH_BODY_SECONDS: Final = 120.0
PUSH_ANSWER_SECONDS: Final = 300.0
"""An upload, and a parse of every DAG file in it."""
_BUNDLE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")

Publish = Callable[[str, bytes, str], str]
"""(bundle, tar archive, actor) -> the digest it was published under; `BundleError` if it is refused."""


class NewJoinToken(operating.Body):
    """Asks for a join token."""

    kind: Literal["join"] = "join"
    region: Name
    pool: Name = "default"
    ttl_seconds: float = Field(default=3600.0, gt=0, le=90 * 86_400)
    uses: int | None = Field(default=1, ge=1)


class NewAccessToken(operating.Body):
    """Asks for an operators' access token. Its scopes must lie within the asker's own."""

    kind: Literal["access"] = "access"
    owner: str = Field(min_length=1, max_length=250)
    scopes: tuple[str, ...] = Field(min_length=1, max_length=50)
    ttl_seconds: float = Field(default=86_400.0, gt=0, le=366 * 86_400)


class NewToken(operating.Body):
    """The body of ``POST tokens``."""

    token: Annotated[NewJoinToken | NewAccessToken, Field(discriminator="kind")]


class Comment(operating.Body):
    """Why."""

    comment: str = Field(default="", max_length=orders.COMMENT_LENGTH)


@dataclass(frozen=True, slots=True)
class Operators:
    """The operators' API over its parts."""

    publish: Publish
    lane: Lane
    metrics: Metrics
    observing: Observing
    policy: LivePolicy

    def app(self, guard: Guard) -> Starlette:
        """Return the ASGI application."""

        def route(path: str, method: str, handler: Handler, seconds: float = REQUEST_SECONDS) -> Route:
            return Route(f"{ROOT}/{path}", guard(handler, self.lane, seconds), methods=[method])

        trail, revoking = Trail(self.lane), Revoking(self.lane)
        return application(
            [
                route("workers", "GET", self._list_workers),
                *(
                    route(f"workers/{{worker}}/{order.name}", "POST", self._order(order))
                    for order in orders.ORDERS.values()
                ),
                route("tokens", "GET", self._list_tokens),
                route("tokens", "POST", self._create_token),
                route("tokens/{token}", "DELETE", self._revoke_token),
                route("dags/{bundle}", "PUT", self._push, PUSH_ANSWER_SECONDS),
                route("metrics", "GET", self._metrics),
                route("status", "GET", self.observing.status),
                route("timeline", "GET", self.observing.timeline),
                route("policy", "GET", self._policy),
                route("revocations", "GET", revoking.listing),
                route("revocations", "POST", revoking.add),
                route("revocations", "DELETE", revoking.remove),
                route("audit", "GET", trail.rows),
                route("audit/chain", "GET", trail.chain),
                *health.routes(self.lane),
            ]
        )

    async def _list_workers(self, request: Request) -> Response:
        def listing(session: Any, operator: Operator) -> Any:
            if not operator.scopes.mention("workers:read"):
                operator.require("workers:read")
            platform, now = self.observing.platform, clock.now(session)
            seen = [row for row in workers.list_all(session) if _sees(operator, row)]
            return {"workers": [_worker(row) | _standing(observed.view(row, platform, now)) for row in seen]}

        return await self._answer(request, listing)

    async def _policy(self, request: Request) -> Response:
        def read(_session: Any, operator: Operator) -> Any:
            operator.require("policy:read")
            rules = self.policy.rules
            return {
                "file": rules.source if rules else None,
                "digest": rules.digest if rules else None,
                "rules": [rule.model_dump() for rule in rules.rules] if rules else [],
            }

        return await self._answer(request, read)

    async def _metrics(self, request: Request) -> Response:
        def allowed(_session: Any, operator: Operator) -> Any:
            operator.require("metrics:read")
            return {}

        await self._answer(request, allowed)
        return Response(self.metrics.render(), media_type=CONTENT_TYPE)

    def _order(self, order: Order) -> Handler:
        async def handle(request: Request) -> Response:
            body = await requests.read_body(request, SMALL_BODY)
            comment = requests.parse(body or b"{}", Comment).comment
            worker = request.path_params["worker"]

            def change(session: Any, operator: Operator) -> Any:
                row = workers.get(session, worker)
                operator.require(
                    order.action,
                    worker,
                    region=row.region if row else "unknown",
                    pool=row.pool if row else "unknown",
                )
                if row is None:
                    raise orders.unknown(worker)
                return _worker(
                    orders.give(session, order, row, comment, operator.actor, address=operator.address)
                )

            return await self._answer(request, change)

        return handle

    async def _list_tokens(self, request: Request) -> Response:
        def listing(session: Any, operator: Operator) -> Any:
            if not operator.scopes.mention("tokens:read"):
                operator.require("tokens:read")
            rows = tokens.list_all(session)
            return {
                "tokens": [_token(row) for row in rows if operator.scopes.allow("tokens:read", row.owner)]
            }

        return await self._answer(request, listing)

    async def _create_token(self, request: Request) -> Response:
        asked = requests.parse(await requests.read_body(request, SMALL_BODY), NewToken).token

        def create(session: Any, operator: Operator) -> Any:
            issued = (
                _create_join(session, operator, asked)
                if isinstance(asked, NewJoinToken)
                else _create_access(session, operator, asked)
            )
            return {"token": issued.text, **_token(issued.row)}

        return await self._answer(request, create)

    async def _revoke_token(self, request: Request) -> Response:
        token = request.path_params["token"]

        def revoke(session: Any, operator: Operator) -> Any:
            found = session.get(TokenRow, token)
            operator.require("tokens:revoke", found.owner if found else "unknown")
            row = issuing.revoke(session, token, operator.actor, operator.address)
            if row is None:
                raise operating.missing(f"there is no token {token[:64]!r}")
            return _token(row)

        return await self._answer(request, revoke)

    async def _push(self, request: Request) -> Response:
        bundle = request.path_params["bundle"]
        if not _BUNDLE.fullmatch(bundle):
            raise Refused(
                400, RefusalReason.MALFORMED, f"{bundle[:64]!r} is no bundle name: {_BUNDLE.pattern}"
            )
        operator = await self.lane.run(_may_push, request, bundle)
        archive = await requests.read_body(request, PUSH_BODY, PUSH_BODY_SECONDS)
        try:
            digest = await self.lane.run(self.publish, bundle, archive, operator.actor)
        except BundleError as error:
            if error.transient:
                raise Unavailable(str(error)) from error
            raise Refused(422, RefusalReason.MALFORMED, str(error)) from error
        await self.lane.run(_note_push, operator, bundle, digest)
        return JSONResponse({"bundle": bundle, "version": digest})

    async def _answer(self, request: Request, work: Callable[[Any, Operator], Any]) -> Response:
        return await operating.answer(self.lane, request, work)


def _may_push(request: Request, bundle: str) -> Operator:
    with unit() as work:
        operator = authenticate_operator(work.session, request.scope)
    operator.require("dags:push", bundle)
    return operator


def _note_push(operator: Operator, bundle: str, digest: str) -> None:
    with unit() as work:
        events.record(work.session, "dags.pushed", operator.actor, bundle=bundle, version=digest)
        audit.record(
            work.session,
            "dags.pushed",
            "changed",
            operator.actor,
            address=operator.address,
            rule="scope dags:push",
            token=operator.token_id,
            bundle=bundle,
            version=digest,
        )


def _create_join(session: Any, operator: Operator, asked: NewJoinToken) -> issuing.Issued:
    operator.require("tokens:create", "join", region=asked.region, pool=asked.pool)
    return issuing.create_join(
        session,
        region=asked.region,
        pool=asked.pool,
        owner=operator.owner,
        ttl=timedelta(seconds=asked.ttl_seconds),
        uses=asked.uses,
        actor=operator.actor,
        address=operator.address,
    )


def _create_access(session: Any, operator: Operator, asked: NewAccessToken) -> issuing.Issued:
    operator.require("tokens:create", "access")
    try:
        wanted = Scopes.parse(asked.scopes)
    except InvalidScope as error:
        raise Refused(400, RefusalReason.MALFORMED, str(error)) from error
    if not operator.scopes.cover(wanted):
        raise Refused(403, RefusalReason.FORBIDDEN, "a token's scopes must lie within its creator's own")
    return issuing.create_access(
        session,
        scopes=asked.scopes,
        owner=asked.owner,
        actor=operator.actor,
        address=operator.address,
        ttl=timedelta(seconds=asked.ttl_seconds),
    )


def _sees(operator: Operator, row: WorkerRow) -> bool:
    return operator.scopes.allow("workers:read", row.id, region=row.region, pool=row.pool)


def _standing(seen: observed.WorkerView) -> dict[str, Any]:
    return {"standing": str(seen.standing), "why": seen.why, "verdict": str(seen.verdict)}


def _worker(row: WorkerRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "region": row.region,
        "pool": row.pool,
        "state": row.state,
        "wanted": row.wanted,
        "comment": row.comment,
        "versions": row.versions,
        "slots_total": row.slots_total,
        "slots_used": row.slots_used,
        "journal_pending": row.journal_pending,
        "clock_skew_seconds": row.clock_skew_seconds,
        "certificate_expires_at": _time(row.certificate_expires_at),
        "enrolled_at": _time(row.enrolled_at),
        "last_heartbeat_at": _time(row.last_heartbeat_at),
        "trust_version": row.trust_version,
    }


def _token(row: TokenRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "kind": row.kind,
        "owner": row.owner,
        "scopes": row.scopes,
        "uses_left": row.uses_left,
        "created_at": _time(row.created_at),
        "expires_at": _time(row.expires_at),
        "last_used_at": _time(row.last_used_at),
        "revoked_at": _time(row.revoked_at),
    }


def _time(value: Any) -> str | None:
    return value.isoformat() if value is not None else None
