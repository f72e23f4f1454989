"""The gateway process: two listeners over one set of parts, served until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self

import structlog
import uvicorn
from starlette.types import ASGIApp

from airbridge.control_plane import _airflow
from airbridge.control_plane._airflow import ExecutionApp
from airbridge.control_plane.gateway import logs, sealer
from airbridge.control_plane.gateway.audit import DenialLog, Rates
from airbridge.control_plane.gateway.authentication import WorkerAuthenticator
from airbridge.control_plane.gateway.claims import Claims
from airbridge.control_plane.gateway.connections import ConnectionLimits, Connections, Ticket
from airbridge.control_plane.gateway.edge import ENDPOINTS, ROOT, Edge
from airbridge.control_plane.gateway.embedded import Embedded
from airbridge.control_plane.gateway.exchanges import Exchanges
from airbridge.control_plane.gateway.handshake import Acceptor
from airbridge.control_plane.gateway.heartbeats import Heartbeats
from airbridge.control_plane.gateway.http import PeerProtocol
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.control_plane.gateway.listener import Guard
from airbridge.control_plane.gateway.live_keys import LiveKeys
from airbridge.control_plane.gateway.live_policy import LivePolicy
from airbridge.control_plane.gateway.metrics import Counted, Metrics
from airbridge.control_plane.gateway.observing import Observing
from airbridge.control_plane.gateway.operators import Operators, Publish
from airbridge.control_plane.gateway.presence import Presence
from airbridge.control_plane.gateway.pulse import Pulse
from airbridge.control_plane.gateway.throttle import RequestRates, Throttle, Throttled
from airbridge.control_plane.gateway.tls import RENEW_EVERY, ServerContexts
from airbridge.control_plane.identity.enrolment import Enrolment
from airbridge.control_plane.identity.iam import AwsIam
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.observe.platform import Platform
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.tracing.exporter import TraceExporter
from airbridge.executor import protection
from airbridge.executor.exceptions import ConfigurationError
from airbridge.executor.regions import Catalogue
from airbridge.executor.settings import Settings

log = structlog.get_logger()

PULSE_THREADS: Final = 2
WAITING_PER_THREAD: Final = 32
WAITING_HEARTBEATS: Final = 4_096
KEEP_ALIVE_SECONDS: Final = 90
"""Longer than clients keep an idle connection, so that it is always they who close it."""
STOP_SECONDS: Final = 10
BACKLOG: Final = 1_024
VITAL: Final = frozenset({f"{ROOT}/heartbeat"})
"""What is answered however much all others ask: leases hang on it."""

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time of this host, which certificates and access tokens are judged by. Leases are not."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything the gateway is made of, read and checked before it listens."""

    settings: Settings
    keyring: Keyring
    catalogue: Catalogue
    parity: Parity
    publish: Publish
    policy: LivePolicy
    clock: Clock = utc_now
    denial_rates: Rates = field(default_factory=Rates)

    @classmethod
    def load(cls, settings: Settings, publish: Publish) -> Self:
        """Read the files that the settings name. Raises `SecretsError` or `ConfigurationError`."""
        return cls(
            settings=settings,
            keyring=Keyring.load(settings.secrets_dir),
            catalogue=Catalogue.read(settings.regions_file),
            parity=Parity.load(settings.compatibility_file, settings.worker_images or ()),
            publish=publish,
            policy=LivePolicy(settings.policy_file),
        )

    @property
    def platform(self) -> Platform:
        """What the read model must know that is not in the database."""
        return Platform.of(self.settings, self.catalogue, self.parity)


class Gateway:
    """Both listeners. `start`, then `stop`; or `serve` until a signal."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        self._parts = parts
        self.live_keys = LiveKeys(parts.keyring, self._new_certificate)
        self._contexts = ServerContexts(parts.keyring.keys.ca, _names(settings), parts.clock)
        self._work = Lane(
            "work", threads=settings.gateway_threads, requests=settings.gateway_threads * WAITING_PER_THREAD
        )
        self._pulse = Lane("pulse", threads=PULSE_THREADS, requests=WAITING_HEARTBEATS)
        self._together = Lane("heartbeats", threads=1, requests=WAITING_HEARTBEATS)
        self._operator_lane = Lane("operators", threads=PULSE_THREADS, requests=WAITING_PER_THREAD)
        self._denials = DenialLog(parts.denial_rates)
        guard = Guard(self._denials)
        metrics = Metrics(parts.platform)
        throttle = Throttle(_rates(settings))
        edge = Counted(
            Throttled(
                _edge(parts, metrics, self._work, self._together, self._pulse).app(guard), throttle, VITAL
            ),
            metrics,
            ENDPOINTS,
        )
        observing = Observing(parts.platform, self._operator_lane)
        operators = Throttled(
            Operators(parts.publish, self._operator_lane, metrics, observing, parts.policy).app(guard),
            throttle,
        )
        host = settings.gateway_host
        limits = ConnectionLimits(
            settings.gateway_max_connections,
            settings.gateway_max_connections_per_address,
            settings.gateway_max_connections_per_worker,
        )
        self._edge = _Listener(
            edge,
            (host, settings.gateway_port),
            context=self._contexts.edge,
            denials=self._denials,
            limits=limits,
        )
        self._operators = _Listener(
            operators,
            (host, settings.operator_port),
            context=self._contexts.operators,
            denials=self._denials,
            limits=limits,
        )
        self._presence = Presence()
        self._exporter = _exporter(settings)
        namespace = settings.metrics_namespace
        self.embedded = Embedded(metrics, namespace, parts.clock) if namespace else None
        self._serving: list[asyncio.Task[None]] = []
        self._loops: list[asyncio.Task[None]] = []

    @property
    def edge_port(self) -> int:
        """The port that workers reach, once started."""
        return self._edge.bound_port

    @property
    def operator_port(self) -> int:
        """The port that operators reach, once started."""
        return self._operators.bound_port

    async def start(self) -> None:
        """Listen. Raises `ConfigurationError` if a port is taken."""
        await self._edge.begin()
        await self._operators.begin()
        self._serving = [
            asyncio.create_task(self._edge.main_loop()),
            asyncio.create_task(self._operators.main_loop()),
        ]
        self._loops = [
            asyncio.create_task(self._presence.run()),
            *([asyncio.create_task(self._exporter.run())] if self._exporter else []),
            *([asyncio.create_task(self.embedded.run())] if self.embedded else []),
            asyncio.create_task(self._renew_certificate()),
            asyncio.create_task(self._denials.run()),
            asyncio.create_task(self._parts.policy.follow()),
            asyncio.create_task(self.live_keys.follow()),
            asyncio.create_task(sealer.run(self._parts.settings.audit_seal_interval)),
        ]
        log.info("gateway.started", edge_port=self.edge_port, operator_port=self.operator_port)

    async def stop(self) -> None:
        """Answer what was asked, then close."""
        for listener in (self._edge, self._operators):
            listener.should_exit = True
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.gather(self._edge.shutdown(), self._operators.shutdown())
        for lane in (self._work, self._together, self._pulse, self._operator_lane):
            await asyncio.to_thread(lane.close)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._denials.close()
        if self.embedded:
            await self.embedded.close()
        await asyncio.to_thread(sealer.seal_once)
        log.info("gateway.stopped")

    async def serve(self) -> None:
        """Start, and stop at SIGTERM or SIGINT."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await self.start()
        try:
            await stopping.wait()
        finally:
            await self.stop()

    def _new_certificate(self) -> None:
        self._contexts.renew(self._parts.keyring.keys.ca)

    async def _renew_certificate(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY.total_seconds())
            self._new_certificate()
            log.info("gateway.certificate_renewed")


def _exporter(settings: Settings) -> TraceExporter | None:
    endpoint = settings.traces_endpoint or _airflow.traces_endpoint()
    if endpoint is None:
        return None
    from airbridge.control_plane.tracing.otlp import Collector

    return TraceExporter(Collector(endpoint))


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves signals, and the end of the process, to the gateway, and TLS to an acceptor."""

    def __init__(
        self,
        app: ASGIApp,
        address: tuple[str, int],
        *,
        context: Callable[[], ssl.SSLContext],
        denials: DenialLog,
        limits: ConnectionLimits,
    ) -> None:
        self._address = address
        self._context = context
        self._denials = denials
        self._connections = Connections(limits)
        config = uvicorn.Config(
            app,
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            backlog=BACKLOG,
        )
        config.load()
        super().__init__(config)

    async def begin(self) -> None:
        """Bind and listen. Raises `ConfigurationError` if the address cannot be had."""
        self.lifespan = self.config.lifespan_class(self.config)
        await self.lifespan.startup()
        self._acceptor = Acceptor(
            _bind(*self._address), self._context, self._connection, self._connections, self._denials.note
        )
        self._acceptor.start(self.config.backlog)
        self.servers = [self._acceptor]  # type: ignore[list-item]  # uvicorn does nothing but close them
        self.started = True

    def _connection(self, ticket: Ticket) -> asyncio.Protocol:
        return PeerProtocol(self.config, self.server_state, self.lifespan.state, ticket)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield

    @property
    def bound_port(self) -> int:
        """The port that was bound."""
        return self._acceptor.port


def _rates(settings: Settings) -> RequestRates:
    return RequestRates(
        settings.gateway_requests_per_second,
        settings.gateway_requests_per_second_per_worker,
        settings.gateway_requests_per_second_per_address,
    )


def _bind(host: str, port: int) -> socket.socket:
    """Return a bound socket: uvicorn ends the process if it cannot bind one itself."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror}; "
            "[airbridge] gateway_host, gateway_port and operator_port must name free ports of this host"
        ) from error
    return bound


def _names(settings: Settings) -> list[str]:
    return [name.strip() for name in settings.gateway_names.split(",") if name.strip()]


def _edge(parts: Parts, metrics: Metrics, work: Lane, together: Lane, alone: Lane) -> Edge:
    settings, keyring = parts.settings, parts.keyring
    app = ExecutionApp()
    heartbeats = Heartbeats(
        parity=parts.parity,
        keyring=keyring,
        lease_seconds=settings.lease_seconds,
        interval_seconds=settings.heartbeat_interval,
        clock=parts.clock,
    )
    return Edge(
        authenticator=WorkerAuthenticator(keyring, settings.trust_domain, parts.clock),
        enrolment=Enrolment(
            keyring=keyring,
            iam=AwsIam(parts.catalogue, _names(settings), parts.clock),
            parity=parts.parity,
            catalogue=parts.catalogue,
            trust_domain=settings.trust_domain,
            lifetime=timedelta(seconds=settings.certificate_lifetime),
            clock=parts.clock,
        ),
        claims=Claims(
            app=app,
            keyring=keyring,
            parity=parts.parity,
            policy=parts.policy,
            lease_seconds=settings.lease_seconds,
        ),
        exchanges=Exchanges(app=app, policy=parts.policy, on_ended=_airflow.task_finished),
        metrics=metrics,
        work=work,
        pulse=Pulse(together, alone, heartbeats),
    )


def run(settings: Settings, publish: Publish) -> None:
    """Serve until SIGTERM or SIGINT. Raises `SecretsError` or `ConfigurationError` before that."""
    logs.configure()
    protection.harden()
    gateway = Gateway(Parts.load(settings, publish))
    # Airflow and its libraries are there for good: walking over them at each full collection holds everybody up.
    gc.collect()
    gc.freeze()
    _event_loop_runner(gateway.serve())


def _event_loop_runner(main: Any) -> None:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
