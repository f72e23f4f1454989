"""The edge listener: what workers may ask, each over mutual TLS with a bound access token. Only enrolment needs neither."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airbridge.control_plane.exceptions import Refused, VersionsRefused
from airbridge.control_plane.gateway import counting, health, openapi, releases, requests
from airbridge.control_plane.gateway.authentication import PEER, Caller, WorkerAuthenticator, check_revocation
from airbridge.control_plane.gateway.claims import Claims
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.exchanges import Exchanges
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.control_plane.gateway.listener import Guard, Handler, application
from airbridge.control_plane.gateway.metrics import Metrics
from airbridge.control_plane.gateway.pulse import Pulse
from airbridge.control_plane.identity.enrolment import Enrolment
from airbridge.executor.protocol import (
    SUPPORTED_VERSIONS,
    VERSION_HEADER,
    ClaimRequest,
    Credentials,
    EnrolRequest,
    ExchangeRequest,
    ExchangeResponse,
    Heartbeat,
    Record,
    RecordResult,
    RefusalReason,
    ReleaseRequest,
    RenewRequest,
)

ROOT: Final = "/edge/v1"
ENDPOINTS: Final = {
    f"{ROOT}/{name}": name for name in ("enrol", "renew", "claim", "heartbeat", "exchange", "release")
}
SMALL_BODY: Final = 256 * 1024
HEARTBEAT_BODY: Final = 1024 * 1024
"""The events of a cut travel in heartbeats."""
CLAIM_BODY: Final = 2 * 1024 * 1024
SIDE_BY_SIDE: Final = 2
"""How many items of one request are applied at once. A worker that comes back with a backlog of thousands has a few
requests under way; with all of their items in line for the threads, everybody's new work would stand behind them."""
EXCHANGE_BODY: Final = 64 * 1024 * 1024
"""XComs travel in exchanges; a larger one belongs in an object store."""


@dataclass(frozen=True, slots=True)
class Edge:
    """The edge API over its parts."""

    authenticator: WorkerAuthenticator
    enrolment: Enrolment
    claims: Claims
    exchanges: Exchanges
    metrics: Metrics
    work: Lane
    pulse: Pulse
    """Heartbeats have a lane of their own: leases are renewed however much other work there is."""

    def app(self, guard: Guard) -> Starlette:
        """Return the ASGI application."""
        endpoints: tuple[tuple[str, Handler, Lane], ...] = (
            ("enrol", self._enrol, self.work),
            ("renew", self._renew, self.work),
            ("claim", self._claim, self.work),
            ("heartbeat", self._heartbeat, self.pulse.lane),
            ("exchange", self._exchange, self.work),
            ("release", self._release, self.work),
        )
        routes = [
            Route(f"{ROOT}/{name}", guard(handler, lane), methods=["POST"])
            for name, handler, lane in endpoints
        ]
        return application([*routes, openapi.route(ROOT), *health.routes(self.pulse.lane)])

    async def _enrol(self, request: Request) -> Response:
        _check_version(request)
        body = requests.parse(await requests.read_body(request, SMALL_BODY), EnrolRequest)

        def enrol() -> Credentials:
            proven = self.enrolment.prove(body)
            try:
                with unit() as work:
                    return self.enrolment.enrol(work.session, body, request.scope[PEER].address, proven)
            except VersionsRefused as refused:
                with unit() as work:
                    self.enrolment.note_refusal(work.session, body, refused)
                raise

        return requests.answer(await self.work.run(enrol))

    async def _renew(self, request: Request) -> Response:
        caller = self._caller(request)
        # To be there is to renew: one scope lets a worker keep its leases and its identity.
        caller.require("worker:heartbeat", worker=caller.name.worker)
        body = requests.parse(await requests.read_body(request, SMALL_BODY), RenewRequest)

        def renew() -> Credentials:
            with unit() as work:
                check_revocation(work.session, caller)
                return self.enrolment.renew(work.session, caller.name, body, caller.address)

        return requests.answer(await self.work.run(renew))

    async def _claim(self, request: Request) -> Response:
        caller = self._caller(request)
        body = requests.parse(await requests.read_body(request, CLAIM_BODY), ClaimRequest)
        answer = await self.work.run(self.claims.claim, caller, body)
        counting.claimed(self.metrics, caller, answer)
        return requests.answer(answer)

    async def _heartbeat(self, request: Request) -> Response:
        caller = self._caller(request)
        body = requests.parse(await requests.read_body(request, HEARTBEAT_BODY), Heartbeat)
        answer = await self.pulse.beat(caller, body)
        counting.told(self.metrics, caller, body.events[: answer.events_taken])
        return requests.answer(answer)

    async def _release(self, request: Request) -> Response:
        caller = self._caller(request)
        body = requests.parse(await requests.read_body(request, SMALL_BODY), ReleaseRequest)
        return requests.answer(await self.work.run(releases.release, caller, body))

    async def _exchange(self, request: Request) -> Response:
        caller = self._caller(request)
        body = requests.parse(await requests.read_body(request, EXCHANGE_BODY), ExchangeRequest)
        caller.require("work:report", worker=caller.name.worker)
        await self.work.run(_check_revocation, caller)
        results = await self._apply(caller, body.records)
        counting.exchanged(self.metrics, caller, body.records, results, datetime.now(UTC))
        return requests.answer(ExchangeResponse(results=results))

    async def _apply(self, caller: Caller, records: tuple[Record, ...]) -> tuple[RecordResult, ...]:
        """Apply the records of different items, a few side by side, and answer in the order of the request."""
        by_item: defaultdict[tuple[UUID, int], list[int]] = defaultdict(list)
        for index, record in enumerate(records):
            by_item[record.item_id, record.epoch].append(index)
        groups = list(by_item.values())
        threads = asyncio.Semaphore(SIDE_BY_SIDE)

        async def apply(group: list[int]) -> list[RecordResult]:
            async with threads:
                return await self.work.run(self.exchanges.apply, caller, [records[i] for i in group])

        answered = await asyncio.gather(*(apply(group) for group in groups))
        placed = dict[int, RecordResult]()
        for group, results in zip(groups, answered, strict=True):
            placed.update(zip(group, results, strict=True))
        return tuple(placed[index] for index in range(len(records)))

    def _caller(self, request: Request) -> Caller:
        caller = self.authenticator.authenticate(request.scope)
        _check_version(request)
        structlog.contextvars.bind_contextvars(worker=caller.name.worker, region=caller.name.region)
        return caller


def _check_revocation(caller: Caller) -> None:
    with unit() as work:
        check_revocation(work.session, caller)


def _check_version(request: Request) -> None:
    said = request.headers.get(VERSION_HEADER, "")
    if not said.isdigit() or int(said) not in SUPPORTED_VERSIONS:
        spoken = ", ".join(map(str, sorted(SUPPORTED_VERSIONS)))
        raise Refused(
            426, RefusalReason.PARITY, f"{VERSION_HEADER} is {said[:20]!r}; this gateway speaks {spoken}"
        )
