"""The worker's parts, put together: who is handed what."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from airbridge.edge_worker import heart, tls
from airbridge.edge_worker.bundles import Bundles
from airbridge.edge_worker.cache import ReadCache
from airbridge.edge_worker.events import EventLog
from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.gateway import Gateway
from airbridge.edge_worker.heart import Heart
from airbridge.edge_worker.holdings import Entry, Holding, Holdings
from airbridge.edge_worker.identity import Identity
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.launcher import Launcher
from airbridge.edge_worker.link import Link
from airbridge.edge_worker.logs import LogShipper
from airbridge.edge_worker.metrics import WorkerMetrics
from airbridge.edge_worker.outbox import Outbox
from airbridge.edge_worker.parts import Parts
from airbridge.edge_worker.region import Region
from airbridge.edge_worker.reporter import Reporter
from airbridge.edge_worker.retry import Backoff
from airbridge.edge_worker.settings import MIB, WorkerSettings
from airbridge.executor.protocol import Credentials, RecordResult, WorkerState


class Owner(heart.Listener, Protocol):
    """Whom the parts ask and tell: the agent."""

    @property
    def worker_state(self) -> WorkerState:
        """What the worker says of itself in a heartbeat."""

    @property
    def claiming(self) -> tuple[UUID, ...]:
        """Work items asked for whose grant is not journalled yet."""

    def may_start(self, holding: Holding) -> bool:
        """Whether a granted task may start."""

    def identity_changed(self, credentials: Credentials) -> None:
        """There is a new identity, or new trust."""

    def answered(self, holding: Holding, entry: Entry, result: RecordResult) -> None:
        """The gateway answered a write."""

    def fenced(self, holding: Holding, result: RecordResult) -> None:
        """The control plane has given an attempt up."""


def backoff(settings: WorkerSettings, parts: Parts) -> Backoff:
    """Return a fresh backoff within the settings' bounds."""
    return Backoff(parts.rng, settings.retry_base_seconds, settings.retry_cap_seconds)


class Assembly:
    """Everything that lives as long as the agent. Raises `SettingsError` if the CA cannot be read."""

    def __init__(
        self, settings: WorkerSettings, parts: Parts, journal: Journal, region: Region, owner: Owner
    ) -> None:
        s, clock = settings, parts.clock

        def fresh_backoff() -> Backoff:
            return backoff(s, parts)

        self.events = EventLog(journal, clock)
        self.link = Link(clock, self.events.link_changed)
        self.holdings = Holdings(s.slots, s.prefetch)
        self.gateway = Gateway(
            s.gateway_url,
            tls.anonymous_context(_read_ca(s)),
            self.link,
            clock,
            timeout_seconds=s.request_timeout_seconds,
            connect_timeout_seconds=s.connect_timeout_seconds,
        )
        self.identity = Identity(
            region=s.region,
            pool=s.pool,
            name=s.name,
            gateway=self.gateway,
            join=parts.join,
            versions=parts.versions,
            backoff=fresh_backoff,
            changed=owner.identity_changed,
        )
        self.reporter = Reporter(
            gateway=self.gateway,
            journal=journal,
            link=self.link,
            clock=clock,
            events=self.events,
            backoff=fresh_backoff(),
            on_answer=owner.answered,
            on_fenced=owner.fenced,
            on_identity=owner.identity_refused,
        )
        self.bundles = Bundles(
            s.bundles_dir, region.bundles, max_bytes=s.bundles_max_mib * MIB, backoff=fresh_backoff
        )
        self.logs = LogShipper(
            s.logs_dir,
            region.logs,
            journal,
            backoff=fresh_backoff,
            chunk_seconds=s.log_chunk_seconds,
            chunk_bytes=s.log_chunk_max_mib * MIB,
        )
        self.launcher = Launcher(
            runner=parts.runner,
            holdings=self.holdings,
            journal=journal,
            bundles=self.bundles,
            logs=self.logs,
            outbox=Outbox(journal, clock, self.reporter.wake, s.linger_seconds),
            cache=ReadCache(clock, s.cache_ttl_seconds),
            link=self.link,
            clock=clock,
            events=self.events,
            cut_off_after=s.cut_off_after_seconds,
            cancel_grace=s.cancel_grace_seconds,
            may_start=owner.may_start,
        )
        self.heart = Heart(
            gateway=self.gateway,
            holdings=self.holdings,
            journal=journal,
            clock=clock,
            rng=parts.rng,
            backoff=fresh_backoff(),
            versions=parts.versions,
            state=lambda: owner.worker_state,
            trust_version=lambda: self.identity.trust_version,
            claiming=lambda: owner.claiming,
            listener=owner,
            events=self.events,
            interval_seconds=s.heartbeat_seconds,
        )

        self.metrics = WorkerMetrics(
            port=s.metrics_port,
            holdings=self.holdings,
            link=self.link,
            journal=journal,
            logs=self.logs,
            events=self.events,
            heart=self.heart,
        )


def _read_ca(settings: WorkerSettings) -> str:
    try:
        return settings.ca_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"ca_file {settings.ca_file} cannot be read: {error}") from error
