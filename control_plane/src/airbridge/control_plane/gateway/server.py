"""Gateway process: two listeners over one set of components, served until a signal."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Self

import structlog
from starlette.types import ASGIApp

from airbridge.control_plane import _airflow, task_options
from airbridge.control_plane._airflow import ExecutionApp
from airbridge.control_plane.environments import EnvironmentReceiver
from airbridge.control_plane.gateway import logs
from airbridge.control_plane.gateway.api.body_reader import BodyReader
from airbridge.control_plane.gateway.api.edge import ENDPOINTS, ROOT, Edge
from airbridge.control_plane.gateway.api.handling import Guard
from airbridge.control_plane.gateway.api.health import Readiness
from airbridge.control_plane.gateway.api.operator_endpoint import OperatorAuthenticator
from airbridge.control_plane.gateway.api.operators import Operators, Publish
from airbridge.control_plane.gateway.api.sessions import SIGN_IN_BODIES, SessionsApi
from airbridge.control_plane.gateway.api.status import StatusApi
from airbridge.control_plane.gateway.approvals import Approvals
from airbridge.control_plane.gateway.audit import anchors, sealer
from airbridge.control_plane.gateway.audit.anchors import Anchors
from airbridge.control_plane.gateway.audit.denials import DenialLog, Rates
from airbridge.control_plane.gateway.auth.authentication import WorkerAuthenticator
from airbridge.control_plane.gateway.auth.key_reload import KeyReloader
from airbridge.control_plane.gateway.auth.residency import Residency
from airbridge.control_plane.gateway.background import request_metrics
from airbridge.control_plane.gateway.background.authority_expiry import AuthorityExpiry
from airbridge.control_plane.gateway.background.liveness import Liveness
from airbridge.control_plane.gateway.background.metrics import Counted, Metrics
from airbridge.control_plane.gateway.background.snapshot_signatures import SnapshotSignatures
from airbridge.control_plane.gateway.background.worker_expiry import WorkerExpiry
from airbridge.control_plane.gateway.background.xcom_sweep import XComSweep
from airbridge.control_plane.gateway.brokering.broker import Broker
from airbridge.control_plane.gateway.brokering.endpoint import BrokerApi
from airbridge.control_plane.gateway.heartbeat.batcher import HeartbeatBatcher
from airbridge.control_plane.gateway.heartbeat.heartbeats import Heartbeats
from airbridge.control_plane.gateway.heartbeat.pace import Pace
from airbridge.control_plane.gateway.loops import Loop, supervise
from airbridge.control_plane.gateway.net.body_reads import MIB, BodyReadLimits, BodyReads
from airbridge.control_plane.gateway.net.connections import ConnectionLimits
from airbridge.control_plane.gateway.net.listener import Listener
from airbridge.control_plane.gateway.net.rate_limits import RateLimited, RateLimiter, RequestRates
from airbridge.control_plane.gateway.net.tls import ServerContexts
from airbridge.control_plane.gateway.threads import ThreadPools
from airbridge.control_plane.gateway.transfer.endpoints import TransferApi
from airbridge.control_plane.gateway.transfer.sources import Sources
from airbridge.control_plane.gateway.triggers.placing import EdgeTriggers
from airbridge.control_plane.gateway.validation.bodies import Bodies
from airbridge.control_plane.gateway.validation.triggers import TriggerClasses
from airbridge.control_plane.gateway.work.claims import Claims
from airbridge.control_plane.gateway.work.exchanges import Exchanges
from airbridge.control_plane.gateway.work.stored_xcoms import StoredXComs
from airbridge.control_plane.identity.enrolment import Enrolment
from airbridge.control_plane.identity.generations import IdentityRules
from airbridge.control_plane.identity.iam import AwsIam
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.identity.oidc.issuers import JoinIssuers
from airbridge.control_plane.identity.oidc.joins import TokenJoins
from airbridge.control_plane.observability.cloudwatch_emf import CloudWatchEmf
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.policy.approved import policy_of
from airbridge.control_plane.policy.reload import ReloadedPolicy
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.sign_in.key_set import KeySet
from airbridge.control_plane.sign_in.rules import SignInRules
from airbridge.control_plane.tracing.exporter import TraceExporter
from airbridge.core.catalogue import Catalogue
from airbridge.core.sandbox import hardening
from airbridge.core.task_options import Options
from airbridge.executor import param_patterns
from airbridge.executor.connection_pings import ping_idle_only
from airbridge.executor.ledger.sharing.limits import Limits
from airbridge.executor.settings import Settings

log = structlog.get_logger()

# A DAG push is large, and an operator's alone.
OPERATOR_BODIES: Final = BodyReadLimits(bytes_total=256 * MIB, bytes_per_caller=256 * MIB)
# A thread that wants the interpreter waits for so long per busy thread before it, and a heartbeat wants it dozens of times.
SWITCH_SECONDS: Final = 0.001
# Exempt from the total rate limit: leases depend on heartbeats.
VITAL: Final = frozenset({f"{ROOT}/heartbeat"})

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return this host's time, for certificates and access tokens. Leases use the database's clock."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class GatewayComponents:
    """Components of the gateway, loaded and validated before it listens."""

    settings: Settings
    keyring: Keyring
    catalogue: Catalogue
    parity: Parity
    publish: Publish
    environments: EnvironmentReceiver
    policy: ReloadedPolicy
    clock: Clock = utc_now
    #: Options of Airflow's configuration that tasks on workers see.
    task_options: Options = field(default_factory=dict)
    #: Queues and buckets of workers that reach nothing but the gateway; from the catalogue if None.
    sources: Sources | None = None
    #: AWS credentials of workers that have none of their own; from STS if None.
    broker: Broker | None = None
    denial_rates: Rates = field(default_factory=Rates)
    sign_in: SignInRules | None = None
    #: Issuers whose tokens admit workers.
    join_issuers: JoinIssuers = field(default_factory=JoinIssuers)

    @classmethod
    def load(cls, settings: Settings, publish: Publish, environments: EnvironmentReceiver) -> Self:
        """Read the files that the settings name. Raises `SecretsError` or `ConfigurationError`."""
        catalogue = Catalogue.read(settings.regions_file)
        return cls(
            settings=settings,
            keyring=Keyring.load(settings.secrets_dir),
            catalogue=catalogue,
            parity=Parity.load(settings.compatibility_file, settings.worker_images or ()),
            publish=publish,
            environments=environments,
            policy=policy_of(settings),
            sign_in=SignInRules.read(settings.oidc_file) if settings.oidc_file else None,
            join_issuers=join_issuers(settings, catalogue),
            task_options=task_options.load(settings.task_options_withheld or ()),
        )

    @property
    def platform(self) -> Platform:
        """Inputs of the read model that are not in the database."""
        return Platform.of(self.settings, self.catalogue, self.parity)


def join_issuers(settings: Settings, catalogue: Catalogue) -> JoinIssuers:
    """Return the issuers of the settings. Raises `ConfigurationError`."""
    path = settings.join_issuers_file
    return JoinIssuers() if path is None else JoinIssuers.read(path, catalogue)


class Gateway:
    """Both listeners and the background loops. `start`, then `stop`; or `serve` until a signal."""

    def __init__(self, components: GatewayComponents) -> None:
        settings = components.settings
        self._components = components
        self._contexts = ServerContexts(components.keyring, _names(settings), components.clock)
        self.key_reloader = KeyReloader(components.keyring, self._contexts.try_renew)
        self._threads = ThreadPools.of(settings.gateway_threads, settings.gateway_max_connections)
        self._denials = DenialLog(components.denial_rates)
        guard = Guard(self._denials)
        self._transfers = TransferApi.of(
            components.sources or Sources(components.catalogue), components.keyring, self._threads
        )
        self._token_joins = TokenJoins(components.join_issuers, components.clock)
        self._authority = AuthorityExpiry(components.keyring, components.clock)
        pace = Pace.of(components.platform)
        self.metrics = metrics = Metrics(components.platform, ENDPOINTS.values(), self._authority, pace)
        self._anchors = Anchors(anchors.sinks(settings.audit_anchors), metrics.audit_fault)
        self._edge = self._edge_listener(guard, pace)
        self._issuer_keys = KeySet(components.sign_in) if components.sign_in else None
        self._approvals = Approvals(
            frozenset(settings.four_eyes or ()), settings.four_eyes_expiry, metrics.break_glass
        )
        self._operators = Listener(
            _operator_app(
                components,
                metrics,
                self._threads,
                guard,
                anchors=self._anchors,
                sessions=_sessions(components, self._issuer_keys, self._threads),
                approvals=self._approvals,
            ),
            (settings.gateway_host, settings.operator_port),
            context=self._contexts.operators,
            denials=self._denials,
            limits=_limits(settings),
        )
        self._liveness = Liveness()
        self._expiry = WorkerExpiry(timedelta(hours=settings.worker_retention_hours))
        self._exporter = _exporter(settings)
        self.emf = _embedded_metrics(metrics, components)
        self._serving: list[asyncio.Task[None]] = []
        self._loops: list[asyncio.Task[None]] = []

    def _edge_listener(self, guard: Guard, pace: Pace) -> Listener:
        settings = self._components.settings
        edge = _edge(
            self._components,
            self.metrics,
            self._threads,
            self._transfers,
            pace=pace,
            token_joins=self._token_joins,
        )
        limited = RateLimited(edge.app(guard), _limiter(settings), VITAL)
        return Listener(
            # The counter is outermost, so that rate-limited requests are counted too.
            Counted(limited, self.metrics, ENDPOINTS),
            (settings.gateway_host, settings.gateway_port),
            context=self._contexts.edge,
            denials=self._denials,
            limits=_limits(settings),
        )

    @property
    def edge_port(self) -> int:
        """Port for workers, once started."""
        return self._edge.bound_port

    @property
    def operator_port(self) -> int:
        """Port for operators, once started."""
        return self._operators.bound_port

    async def start(self) -> None:
        """Start listening. Raises `ConfigurationError` if a port is taken."""
        # A policy that is in the database must be known before the first claim.
        await asyncio.to_thread(self._components.policy.reload)
        await self._edge.begin()
        await self._operators.begin()
        self._serving = [
            asyncio.create_task(supervise("edge_listener", self._edge.main_loop)),
            asyncio.create_task(supervise("operator_listener", self._operators.main_loop)),
        ]
        self._loops = [asyncio.create_task(supervise(name, run)) for name, run in self._background().items()]
        self._check_database_pool()
        log.info("gateway.started", edge_port=self.edge_port, operator_port=self.operator_port)

    def _background(self) -> dict[str, Loop]:
        """Return the background loops by name."""
        components, settings = self._components, self._components.settings
        return {
            "liveness": self._liveness.run,
            "worker_expiry": self._expiry.run,
            "xcom_sweep": XComSweep(StoredXComs.of(components.catalogue)).run,
            **({"traces": self._exporter.run} if self._exporter else {}),
            **({"emf": self.emf.run} if self.emf else {}),
            "authority_expiry": self._authority.run,
            "server_certificate": self._contexts.run,
            "denials": self._denials.run,
            "policy": components.policy.run,
            "approvals": self._approvals.run,
            "keys": self.key_reloader.run,
            "snapshot_signatures": SnapshotSignatures(components.keyring, settings.worker_alive_seconds).run,
            "sealer": partial(sealer.run, settings.audit_seal_interval),
            "anchors": partial(self._anchors.run, settings.audit_anchor_interval),
        }

    def _check_database_pool(self) -> None:
        """Warn if threads would have to wait for connections: SQLAlchemy's wait of 30 s outlasts every client's."""
        available, needed = _airflow.most_connections(), self._threads.database_connections
        if available is not None and available < needed:
            log.warning(
                "gateway.database_pool_small",
                connections=available,
                needed=needed,
                remedy="raise [database] sql_alchemy_pool_size",
            )

    async def stop(self) -> None:
        """Answer the requests in flight, then close."""
        self._transfers.receiving.close()
        for listener in (self._edge, self._operators):
            listener.should_exit = True
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.gather(self._edge.shutdown(), self._operators.shutdown())
        # The loops end last: requests in the threads may still submit denials.
        await asyncio.to_thread(self._threads.close)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._denials.close()
        if self._issuer_keys:
            await self._issuer_keys.close()
        await self._token_joins.close()
        if self.emf:
            await self.emf.close()
        await asyncio.to_thread(sealer.seal_once)
        log.info("gateway.stopped")

    async def serve(self) -> None:
        """Start, and stop at SIGTERM or SIGINT."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        ping_idle_only(_airflow.engine())
        await self.start()
        try:
            await stopping.wait()
        finally:
            await self.stop()


def _embedded_metrics(metrics: Metrics, components: GatewayComponents) -> CloudWatchEmf | None:
    namespace = components.settings.metrics_namespace
    return CloudWatchEmf(metrics, namespace, components.clock) if namespace else None


def _exporter(settings: Settings) -> TraceExporter | None:
    endpoint = settings.traces_endpoint or _airflow.traces_endpoint()
    if endpoint is None:
        return None
    from airbridge.control_plane.tracing.otlp import Collector

    return TraceExporter(Collector(endpoint))


def _limiter(settings: Settings) -> RateLimiter:
    """Return a listener's own limiter: what floods the edge port must not keep operators from revoking it."""
    rates = RequestRates(
        settings.gateway_requests_per_second,
        settings.gateway_requests_per_second_per_worker,
        settings.gateway_requests_per_second_per_address,
    )
    return RateLimiter(rates)


def _names(settings: Settings) -> list[str]:
    return [name.strip() for name in settings.gateway_names.split(",") if name.strip()]


def _operator_app(
    components: GatewayComponents,
    metrics: Metrics,
    threads: ThreadPools,
    guard: Guard,
    *,
    anchors: Anchors,
    sessions: SessionsApi,
    approvals: Approvals,
) -> ASGIApp:
    status_api = StatusApi(components.platform, threads.operators)
    api = Operators(
        publish=components.publish,
        environments=components.environments,
        bodies=BodyReader(BodyReads(OPERATOR_BODIES), threads.parsing),
        threads=threads.operators,
        publishing=threads.publishing,
        builds=threads.builds,
        scrapes=threads.scrapes,
        authenticator=OperatorAuthenticator(threads.operator_tokens),
        readiness=Readiness(threads.health),
        metrics=metrics,
        status_api=status_api,
        policy=components.policy,
        sessions=sessions,
        approvals=approvals,
        keyring=components.keyring,
        anchors=anchors.read,
    )
    return RateLimited(api.app(guard), _limiter(components.settings))


def _sessions(components: GatewayComponents, keys: KeySet | None, threads: ThreadPools) -> SessionsApi:
    return SessionsApi(
        rules=components.sign_in,
        keys=keys,
        bodies=BodyReader(BodyReads(SIGN_IN_BODIES), threads.parsing),
        threads=threads.sign_ins,
        clock=components.clock,
    )


def _limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        settings.gateway_max_connections,
        settings.gateway_max_connections_per_address,
        settings.gateway_max_connections_per_worker,
    )


def _edge(
    components: GatewayComponents,
    metrics: Metrics,
    threads: ThreadPools,
    transfers: TransferApi,
    *,
    pace: Pace,
    token_joins: TokenJoins,
) -> Edge:
    settings, keyring = components.settings, components.keyring
    app = ExecutionApp()
    return Edge(
        authenticator=WorkerAuthenticator(
            keyring, settings.trust_domain, components.clock, _identity_rules(settings)
        ),
        enrolment=_enrolment(components),
        claims=Claims(
            app=app,
            keyring=keyring,
            parity=components.parity,
            policy=components.policy,
            lease_seconds=settings.lease_seconds,
            limits=Limits(components.catalogue.limits),
            on_granted=partial(request_metrics.granted, metrics),
        ),
        exchanges=_exchanges(app, components, metrics),
        metrics=metrics,
        bodies=BodyReader(BodyReads(), threads.parsing),
        claiming=threads.claims,
        work=threads.work,
        enrolments=threads.enrolments,
        joins=threads.joins,
        token_joins=token_joins,
        readiness=Readiness(threads.health),
        heartbeats=_heartbeats(components, metrics, threads, pace),
        transfers=transfers,
        brokering=BrokerApi(
            components.broker or Broker(components.catalogue),
            BodyReader(BodyReads(), threads.parsing),
            threads.brokering,
        ),
    )


def _heartbeats(
    components: GatewayComponents, metrics: Metrics, threads: ThreadPools, pace: Pace
) -> HeartbeatBatcher:
    settings = components.settings
    heartbeats = Heartbeats(
        parity=components.parity,
        keyring=components.keyring,
        lease_seconds=settings.lease_seconds,
        interval_seconds=settings.heartbeat_interval,
        given_interval=lambda: pace.interval_seconds,
        clock=components.clock,
        on_events=partial(request_metrics.events_received, metrics),
    )
    return HeartbeatBatcher(threads.batches, threads.heartbeats, heartbeats, pace)


def _enrolment(components: GatewayComponents) -> Enrolment:
    settings, keyring = components.settings, components.keyring
    return Enrolment(
        keyring=keyring,
        iam=AwsIam(components.catalogue, _names(settings), components.clock),
        parity=components.parity,
        catalogue=components.catalogue,
        trust_domain=settings.trust_domain,
        lifetime=timedelta(seconds=settings.certificate_lifetime),
        clock=components.clock,
        lease_seconds=settings.lease_seconds,
        task_options=components.task_options,
    )


def _exchanges(app: ExecutionApp, components: GatewayComponents, metrics: Metrics) -> Exchanges:
    triggers = TriggerClasses.installed(components.settings.trigger_classes or ())
    return Exchanges(
        app=app,
        policy=components.policy,
        bodies=Bodies(triggers, components.clock),
        residency=Residency.of(components.catalogue),
        stored_xcoms=StoredXComs.of(components.catalogue),
        triggers=EdgeTriggers.of(
            components.catalogue,
            enabled=components.settings.edge_triggers,
            alive_seconds=components.settings.worker_alive_seconds,
        ),
        on_ended=_airflow.task_finished,
        on_moved=lambda region, pool, count: metrics.moved(region, pool, "xcom", count),
        on_reported=lambda caller, records: request_metrics.reported(
            metrics, caller, records, datetime.now(UTC)
        ),
    )


def _identity_rules(settings: Settings) -> IdentityRules:
    return IdentityRules(
        timedelta(seconds=settings.identity_grace), "stop" if settings.identity_stop_two_addresses else "flag"
    )


def run(settings: Settings, publish: Publish, environments: EnvironmentReceiver) -> None:
    """Serve until SIGTERM or SIGINT. Raises `SecretsError` or `ConfigurationError` before that."""
    logs.configure()
    hardening.harden()
    param_patterns.install()
    gateway = Gateway(GatewayComponents.load(settings, publish, environments))
    # Airflow's objects live as long as the process: scanning them at each full collection would only delay requests.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)
    _event_loop_runner(gateway.serve())


def _event_loop_runner(main: Any) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
