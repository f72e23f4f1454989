"""Edge API for workers, over mutual TLS with a certificate-bound access token. Only enrolment needs neither."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airbridge.control_plane.exceptions import Refused, VersionsRefused
from airbridge.control_plane.gateway.api import health, openapi, requests
from airbridge.control_plane.gateway.api.body_reader import BodyLimit, BodyReader
from airbridge.control_plane.gateway.api.handling import Guard, Handler, application
from airbridge.control_plane.gateway.auth.authentication import (
    PEER,
    Caller,
    WorkerAuthenticator,
    check_revocation,
)
from airbridge.control_plane.gateway.background import request_metrics
from airbridge.control_plane.gateway.background.metrics import Metrics
from airbridge.control_plane.gateway.brokering import endpoint as brokering
from airbridge.control_plane.gateway.brokering.endpoint import BrokerApi
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.heartbeat.batcher import HeartbeatBatcher
from airbridge.control_plane.gateway.net.http import SLOWEST
from airbridge.control_plane.gateway.net.thread_pools import Admission, ThreadPool
from airbridge.control_plane.gateway.transfer import endpoints as transfer
from airbridge.control_plane.gateway.transfer.endpoints import TransferApi
from airbridge.control_plane.gateway.work import release
from airbridge.control_plane.gateway.work.claims import Claims
from airbridge.control_plane.gateway.work.exchanges import Exchanges
from airbridge.control_plane.identity.enrolment import AnyProof, Enrolment
from airbridge.control_plane.identity.oidc.joins import TokenJoin, TokenJoins
from airbridge.core.metrics import OTHER
from airbridge.core.protocol import (
    SUPPORTED_VERSIONS,
    VERSION_HEADER,
    ClaimRequest,
    Credentials,
    EnrolRequest,
    ExchangeRequest,
    ExchangeResponse,
    Heartbeat,
    JoinByAwsIam,
    Record,
    RecordResult,
    RefusalReason,
    ReleaseRequest,
    RenewRequest,
)

ROOT: Final = "/edge/v1"
ENDPOINTS: Final = {
    f"{ROOT}/{name}": name
    for name in (
        "enrol",
        "renew",
        "claim",
        "heartbeat",
        "exchange",
        "release",
        brokering.PATH,
        *transfer.PATHS,
    )
}
# Enrolments come from callers without a certificate: a few kilobytes, parsed on the event loop.
ENROL_BODY: Final = BodyLimit(64 * 1024, values=256)
RENEW_BODY: Final = BodyLimit(64 * 1024, values=256)
CLAIM_BODY: Final = BodyLimit(2 * 1024 * 1024)
# Heartbeats carry the events that gathered during a network outage.
HEARTBEAT_BODY: Final = BodyLimit(1024 * 1024, values=50_000)
# Exchanges carry XComs; larger values belong in an object store.
EXCHANGE_BODY: Final = BodyLimit(64 * 1024 * 1024, values=20_000, slowest=SLOWEST)
RELEASE_BODY: Final = BodyLimit(256 * 1024, values=5_000)
# Items of one request that are applied concurrently. A worker that reconnects with a backlog of thousands of
# records has a few requests in flight; if all their items queued for the threads, other workers' claims would
# wait behind them.
SIDE_BY_SIDE: Final = 2


@dataclass(frozen=True, slots=True)
class Edge:
    """Edge API over its components."""

    authenticator: WorkerAuthenticator
    enrolment: Enrolment
    claims: Claims
    exchanges: Exchanges
    metrics: Metrics
    bodies: BodyReader
    #: Has threads of its own: what starts a task does not wait behind results, which are safe in their workers' journals.
    claiming: ThreadPool
    work: ThreadPool
    #: Enrolments, of callers without a certificate.
    enrolments: ThreadPool
    #: Verifications of joins by IAM role, which wait for AWS, and of issuers' tokens.
    joins: ThreadPool
    token_joins: TokenJoins
    readiness: health.Readiness
    #: Has threads of its own: leases are renewed under any load of other requests.
    heartbeats: HeartbeatBatcher
    #: For workers that reach nothing but this gateway.
    transfers: TransferApi
    #: For workers whose AWS credentials are brokered.
    brokering: BrokerApi

    def app(self, guard: Guard) -> Starlette:
        """Return the ASGI application."""
        endpoints: tuple[tuple[str, Handler], ...] = (
            ("enrol", self._enrol),
            ("renew", self._renew),
            ("claim", self._claim),
            ("heartbeat", self._heartbeat),
            ("exchange", self._exchange),
            ("release", self._release),
        )
        routes = [Route(f"{ROOT}/{name}", guard(handler), methods=["POST"]) for name, handler in endpoints]
        routes += self.transfers.routes(ROOT, guard, self._caller)
        routes.append(self.brokering.route(ROOT, guard, self._caller))
        return application([*routes, openapi.route(ROOT), *health.routes(self.readiness)])

    async def _enrol(self, request: Request) -> Response:
        _check_version(request)
        body = await self.bodies.parse(request, EnrolRequest, ENROL_BODY)
        try:
            proven = await self._prove(body)
            return requests.answer(
                await self.enrolments.run(self._issue, body, request.scope[PEER].address, proven)
            )
        except Refused as refused:
            known = self.enrolment.catalogue.region(body.region)
            self.metrics.join_refused(known.name if known else OTHER, str(refused.reason))
            raise

    async def _prove(self, body: EnrolRequest) -> AnyProof | None:
        if isinstance(body.join, TokenJoin):
            return await self.joins.run(await self.token_joins.verification(body, body.join))
        if isinstance(body.join, JoinByAwsIam):
            return await self.joins.run(self.enrolment.prove, body)
        return None

    def _issue(self, body: EnrolRequest, address: str, proven: AnyProof | None) -> Credentials:
        try:
            with unit() as work:
                return self.enrolment.enrol(work.session, body, address, proven)
        except VersionsRefused as refused:
            with unit() as work:
                self.enrolment.record_refusal(work.session, body, refused)
            raise

    async def _renew(self, request: Request) -> Response:
        caller = self._caller(request)
        # The heartbeat's scope covers renewal too: a worker that may keep its leases may keep its identity.
        caller.require("worker:heartbeat", worker=caller.name.worker)
        body = await self.bodies.parse(request, RenewRequest, RENEW_BODY)

        def renew() -> Credentials:
            with unit() as work:
                check_revocation(work.session, caller)
                return self.enrolment.renew(work.session, caller.use, body)

        return requests.answer(await self.work.run(renew))

    async def _claim(self, request: Request) -> Response:
        caller = self._caller(request)
        body = await self.bodies.parse(request, ClaimRequest, CLAIM_BODY)
        answer = await self.claiming.run(self.claims.claim, caller, body)
        request_metrics.claims_refused(self.metrics, caller, answer)
        return requests.answer(answer)

    async def _heartbeat(self, request: Request) -> Response:
        caller = self._caller(request)
        body = await self.bodies.parse(request, Heartbeat, HEARTBEAT_BODY)
        answer = await self.heartbeats.handle(caller, body)
        return requests.answer(answer)

    async def _release(self, request: Request) -> Response:
        caller = self._caller(request)
        body = await self.bodies.parse(request, ReleaseRequest, RELEASE_BODY)
        return requests.answer(await self.work.run(release.release, caller, body))

    async def _exchange(self, request: Request) -> Response:
        caller = self._caller(request)
        async with (
            self.bodies.parsed(request, ExchangeRequest, EXCHANGE_BODY) as body,
            self.work.admit() as work,
        ):
            caller.require("work:report", worker=caller.name.worker)
            results = await self._apply(work, caller, body.records)
            request_metrics.reports_refused(self.metrics, caller, results)
            return requests.answer(ExchangeResponse(results=results))

    async def _apply(
        self, work: Admission, caller: Caller, records: tuple[Record, ...]
    ) -> tuple[RecordResult, ...]:
        """Apply the records, a few items concurrently, and return the results in the order of the request."""
        by_item: defaultdict[tuple[UUID, int], list[int]] = defaultdict(list)
        for index, record in enumerate(records):
            by_item[record.item_id, record.epoch].append(index)
        groups = list(by_item.values())
        if len(groups) == 1:
            return tuple(await work.run(self.exchanges.apply, caller, records, judge=True))
        await work.run(_check_revocation, caller)
        threads = asyncio.Semaphore(SIDE_BY_SIDE)

        async def apply(group: list[int]) -> list[RecordResult]:
            async with threads:
                return await work.run(self.exchanges.apply, caller, [records[i] for i in group])

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
    sent = request.headers.get(VERSION_HEADER, "")
    if not sent.isdigit() or int(sent) not in SUPPORTED_VERSIONS:
        supported = ", ".join(map(str, sorted(SUPPORTED_VERSIONS)))
        raise Refused(
            426, RefusalReason.PARITY, f"{VERSION_HEADER} is {sent[:20]!r}; this gateway supports {supported}"
        )
