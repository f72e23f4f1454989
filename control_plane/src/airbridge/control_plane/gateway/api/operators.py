"""Operator API: workers, tokens, DAG pushes and status, for operators and CI with access tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

from pydantic import Field
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airbridge.control_plane import audit_events, worker_commands
from airbridge.control_plane.dags import Accepted, PushTerms, Steps, Work, advance
from airbridge.control_plane.environments import ARCHIVE_BYTES, EnvironmentReceiver, Offer
from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.gateway.api import actions, documents, health, operator_endpoint, requests
from airbridge.control_plane.gateway.api.actions import NewJoinToken, NewToken
from airbridge.control_plane.gateway.api.audit import AuditApi
from airbridge.control_plane.gateway.api.body_reader import DEADLINE, BodyLimit, BodyReader, Deadline
from airbridge.control_plane.gateway.api.handling import REQUEST_SECONDS, Guard, Handler, application
from airbridge.control_plane.gateway.api.operator_endpoint import OperatorAuthenticator
from airbridge.control_plane.gateway.api.proposals import ProposalsApi
from airbridge.control_plane.gateway.api.revocations import RevocationsApi
from airbridge.control_plane.gateway.api.sessions import SIGN_IN_SECONDS, SessionsApi
from airbridge.control_plane.gateway.api.status import StatusApi
from airbridge.control_plane.gateway.approvals import Approvals
from airbridge.control_plane.gateway.audit.anchors import Anchor
from airbridge.control_plane.gateway.auth.authentication import Operator, authenticate_operator
from airbridge.control_plane.gateway.background.metrics import CONTENT_TYPE, Metrics
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.hosts.api import BoundKeysApi
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.policy.reload import ReloadedPolicy
from airbridge.control_plane.read_model import workers as observed
from airbridge.control_plane.worker_commands import WorkerCommand
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import BundleError
from airbridge.core.protocol import RefusalReason
from airbridge.executor.bundles import versions
from airbridge.executor.ledger import clock, workers
from airbridge.executor.ledger.identity import tokens
from airbridge.executor.ledger.models import WorkerRow

Result = TypeVar("Result")

ROOT: Final = "/operator/v1"
SMALL_BODY: Final = BodyLimit(64 * 1024)
PUSH_BODY: Final = BodyLimit(256 * 1024 * 1024, seconds=120.0)
ENVIRONMENT_BODY: Final = BodyLimit(ARCHIVE_BYTES, seconds=240.0)
# A manifest and a lock, and requirement files of up to 4 MiB each, as texts.
OFFER_BODY: Final = BodyLimit(16 * 1024 * 1024)
# Seconds for the upload, for building packages and for parsing every DAG file. Later nothing is published.
PUSH_ANSWER_SECONDS: Final = 300.0
_BUNDLE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")

_DIGITS: Final = re.compile(r"[0-9a-f]{64}")

# (bundle, tar archive, terms) -> the steps of its publication, which raise `BundleError` if it is refused.
Publish = Callable[[str, bytes, PushTerms], Steps]


class Comment(operator_endpoint.Body):
    """Body of a worker command."""

    comment: str = Field(default="", max_length=worker_commands.COMMENT_LENGTH)
    #: Of a revocation that needs two persons: do it at once, by scope ``break_glass:use``, with an alarm.
    break_glass: bool = False


class EnvironmentOffer(operator_endpoint.Body):
    """Body of an offered environment: the texts of `airbridge.control_plane.environments.Offer`."""

    manifest: str
    lock: str
    inputs: str


class TokenRevocation(operator_endpoint.Body):
    """Query of a token's revocation."""

    break_glass: bool = False


@dataclass(frozen=True, slots=True)
class Operators:
    """Operator API over its components."""

    publish: Publish
    environments: EnvironmentReceiver
    bodies: BodyReader
    threads: ThreadPool
    #: Has threads of its own: a revocation does not wait behind code that is being parsed.
    publishing: ThreadPool
    builds: ThreadPool
    scrapes: ThreadPool
    authenticator: OperatorAuthenticator
    readiness: health.Readiness
    metrics: Metrics
    status_api: StatusApi
    policy: ReloadedPolicy
    sessions: SessionsApi
    approvals: Approvals
    keyring: Keyring
    anchors: Callable[[], list[Anchor]] = list

    def app(self, guard: Guard) -> Starlette:
        """Return the ASGI application."""

        def route(path: str, method: str, handler: Handler, seconds: float = REQUEST_SECONDS) -> Route:
            endpoint = guard(self.authenticator.before(handler), seconds)
            return Route(f"{ROOT}/{path}", endpoint, methods=[method])

        audit_api = AuditApi(self.threads, self.publishing, self.anchors)
        revocations_api = RevocationsApi(self.threads, self.bodies, self.approvals)
        proposals_api = ProposalsApi(self.approvals, self.threads, self.bodies)
        keys_api = BoundKeysApi(self.threads, self.bodies, self.approvals, self.status_api.platform.catalogue)
        return application(
            [
                *keys_api.routes(route),
                route("workers", "GET", self._list_workers),
                *(
                    route(f"workers/{{worker}}/{command.name}", "POST", self._command(command))
                    for command in worker_commands.COMMANDS.values()
                ),
                route("keys", "GET", self._keys),
                route("tokens", "GET", self._list_tokens),
                route("tokens", "POST", self._create_token),
                route("tokens/{token}", "DELETE", self._revoke_token),
                route("dags/{bundle}", "PUT", self._push, PUSH_ANSWER_SECONDS),
                route("environments/{bundle}", "PUT", self._offer_environment),
                route("environments/{bundle}/{digits}", "PUT", self._take_environment, PUSH_ANSWER_SECONDS),
                route("metrics", "GET", self._metrics),
                route("status", "GET", self.status_api.status),
                route("timeline", "GET", self.status_api.timeline),
                route("usage", "GET", self.status_api.usage),
                route("policy", "GET", self._policy),
                route("policy", "PUT", proposals_api.change_policy),
                route("proposals", "GET", proposals_api.listing),
                route("proposals/{proposal}", "GET", proposals_api.show),
                route("proposals/{proposal}/approve", "POST", proposals_api.decision("approve")),
                route("proposals/{proposal}/refuse", "POST", proposals_api.decision("refuse")),
                route("proposals/{proposal}/collect", "POST", proposals_api.decision("collect")),
                route("revocations", "GET", revocations_api.listing),
                route("revocations", "POST", revocations_api.add),
                route("revocations", "DELETE", revocations_api.remove),
                route("audit", "GET", audit_api.rows),
                route("audit/chain", "GET", audit_api.chain),
                route("audit/anchors", "GET", audit_api.last_anchors),
                *self._session_routes(guard),
                *health.routes(self.readiness),
            ]
        )

    def _session_routes(self, guard: Guard) -> list[Route]:
        """Return the routes without a token: an operator who signs in has none yet."""
        return [
            Route(f"{ROOT}/sessions", guard(self.sessions.describe), methods=["GET"]),
            Route(f"{ROOT}/sessions", guard(self.sessions.create, SIGN_IN_SECONDS), methods=["POST"]),
        ]

    async def _list_workers(self, request: Request) -> Response:
        def listing(session: Any, operator: Operator) -> Any:
            if not operator.scopes.mention("workers:read"):
                operator.require("workers:read")
            platform, now = self.status_api.platform, clock.now(session)
            seen = [row for row in workers.list_all(session) if _sees(operator, row)]
            return {
                "workers": [
                    documents.worker(row) | _standing(observed.view(row, platform, now)) for row in seen
                ]
            }

        return await self._answer(request, listing)

    async def _keys(self, request: Request) -> Response:
        def read(session: Any, operator: Operator) -> Any:
            operator.require("workers:read")
            return {
                **self.keyring.keys.describe(),
                "snapshots_signed_by": versions.signed_by(session),
            }

        return await self._answer(request, read)

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
        return Response(await self.scrapes.run(self.metrics.render), media_type=CONTENT_TYPE)

    def _command(self, command: WorkerCommand) -> Handler:
        async def handle(request: Request) -> Response:
            async with self.bodies.read(request, SMALL_BODY) as body:
                given = requests.parse(body or b"{}", Comment)
            asked = {
                "worker": request.path_params["worker"],
                "command": command.name,
                "comment": given.comment,
            }

            def change(session: Any, operator: Operator) -> Any:
                if command is not worker_commands.REVOKE:
                    return actions.command(session, operator, asked)
                return self.approvals.perform(
                    session, operator, "worker.revoke", asked, break_glass=given.break_glass
                )

            return await self._answer(request, change)

        return handle

    async def _list_tokens(self, request: Request) -> Response:
        def listing(session: Any, operator: Operator) -> Any:
            if not operator.scopes.mention("tokens:read"):
                operator.require("tokens:read")
            rows = tokens.list_all(session)
            return {
                "tokens": [
                    documents.token(row) for row in rows if operator.scopes.allow("tokens:read", row.owner)
                ]
            }

        return await self._answer(request, listing)

    async def _create_token(self, request: Request) -> Response:
        wanted = (await self.bodies.parse(request, NewToken, SMALL_BODY)).token
        asked = wanted.model_dump(mode="json")

        def create(session: Any, operator: Operator) -> Any:
            if isinstance(wanted, NewJoinToken):
                _require_place(operator, wanted, self.status_api.platform.catalogue)
            actions.check_lifetime(session, operator, wanted)
            return self.approvals.perform(session, operator, "token.create", asked)

        return await self._answer(request, create)

    async def _revoke_token(self, request: Request) -> Response:
        asked = {"token": request.path_params["token"]}
        given = operator_endpoint.query(request, TokenRevocation)

        def revoke(session: Any, operator: Operator) -> Any:
            return self.approvals.perform(
                session, operator, "token.revoke", asked, break_glass=given.break_glass
            )

        return await self._answer(request, revoke)

    async def _push(self, request: Request) -> Response:
        bundle = _bundle(request)
        operator = await self.threads.run(_may, request, "dags:push", bundle)
        record = _recorder(operator, "dags.pushed", "dags:push", bundle, "version")
        async with self.bodies.read(request, PUSH_BODY) as archive:
            deadline: Deadline = request.scope[DEADLINE]
            terms = PushTerms(operator.actor, deadline.monotonic, record)
            accepted = await self._in_steps(self.publish(bundle, archive, terms))
        if not accepted.recorded:
            await self.threads.run(_record_alone, record, accepted.version)
        return JSONResponse(
            {"bundle": bundle, "version": accepted.version, "check_seconds": accepted.check_seconds}
        )

    async def _in_steps(self, steps: Steps) -> Accepted:
        """Publish a push. Its builds run in their own threads: pushes that wait for one hold up no other."""
        while not isinstance(done := await self._published(advance, steps), Accepted):
            await self.builds.run(_work, done, steps)
        return done

    async def _offer_environment(self, request: Request) -> Response:
        bundle = _bundle(request)
        operator = await self.threads.run(_may, request, "environments:push", bundle)
        given = await self.bodies.parse(request, EnvironmentOffer, OFFER_BODY)
        offer = Offer(given.manifest, given.lock, given.inputs)
        record = _recorder(operator, "environment.pushed", "environments:push", bundle, "inputs")
        answer = await self._published(self.environments.offer, bundle, offer, operator.actor, record)
        return JSONResponse({"bundle": bundle, **asdict(answer)})

    async def _take_environment(self, request: Request) -> Response:
        bundle, digits = _bundle(request), request.path_params["digits"]
        await self.threads.run(_may, request, "environments:push", bundle)
        if not _DIGITS.fullmatch(digits):
            raise Refused(
                400, RefusalReason.MALFORMED, f"{digits[:64]!r} is not a SHA-256 in hexadecimal digits"
            )
        version = f"sha256:{digits}"
        async with self.bodies.read(request, ENVIRONMENT_BODY) as archive:
            owed_to = await self._published(self.environments.take, bundle, version, archive)
        return JSONResponse({"bundle": bundle, "version": version, "owed_to": list(owed_to)})

    async def _published(self, publish: Callable[..., Result], *what: Any) -> Result:
        try:
            return await self.publishing.run(publish, *what)
        except BundleError as error:
            if error.transient:
                raise Unavailable(str(error)) from error
            raise Refused(422, RefusalReason.MALFORMED, str(error)) from error

    async def _answer(self, request: Request, work: Callable[[Any, Operator], Any]) -> Response:
        return await operator_endpoint.answer(self.threads, request, work)


def _bundle(request: Request) -> str:
    """Return the bundle of a path. Raises `Refused`."""
    bundle: str = request.path_params["bundle"]
    if not _BUNDLE.fullmatch(bundle):
        raise Refused(
            400,
            RefusalReason.MALFORMED,
            f"{bundle[:64]!r} is not a bundle name; expected {_BUNDLE.pattern}",
        )
    return bundle


def _may(request: Request, action: str, bundle: str) -> Operator:
    with unit() as work:
        operator = authenticate_operator(work.session, request.scope)
    operator.require(action, bundle)
    return operator


def _recorder(
    operator: Operator, event: str, scope: str, bundle: str, what: str
) -> Callable[[Any, str], None]:
    """Return a function that records a push in a session: the value it is given is that of `what`."""

    def record(session: Any, value: str) -> None:
        detail: dict[str, Any] = {"bundle": bundle, what: value}
        audit_events.record(
            session,
            event,
            "changed",
            operator.actor,
            address=operator.address,
            rule=f"scope {scope}",
            token=operator.token_id,
            **detail,
        )

    return record


def _record_alone(record: Callable[[Any, str], None], value: str) -> None:
    with unit() as work:
        record(work.session, value)


def _work(work: Work, _steps: Steps) -> None:
    """Do work between two steps of a push. The steps, which hold its scratch directory, live as long as it takes."""
    work()


def _require_place(operator: Operator, wanted: NewJoinToken, catalogue: Catalogue) -> None:
    """Raise `Refused` for a join token with which no worker could join."""
    operator.require("tokens:create", "join", region=wanted.region, pool=wanted.pool)
    if fault := catalogue.lacks(wanted.region, wanted.pool):
        raise Refused(400, RefusalReason.MALFORMED, f"no worker could join with this token: {fault}")


def _sees(operator: Operator, row: WorkerRow) -> bool:
    return operator.scopes.allow("workers:read", row.id, region=row.region, pool=row.pool)


def _standing(seen: observed.WorkerView) -> dict[str, Any]:
    return {"standing": str(seen.standing), "why": seen.why, "verdict": str(seen.verdict)}
