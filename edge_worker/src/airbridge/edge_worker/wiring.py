"""Wiring of the worker: the components that a test may replace, and the construction of everything else from them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from airbridge.core.aws.object_store import connect
from airbridge.core.backoff import Backoff
from airbridge.core.protocol import Credentials, RegionSettings, Versions
from airbridge.core.sandbox import landlock
from airbridge.edge_worker.clock import Clock, SystemClock
from airbridge.edge_worker.exceptions import GatewayError, SettingsError
from airbridge.edge_worker.gateway_client import tls
from airbridge.edge_worker.gateway_client.client import Gateway
from airbridge.edge_worker.gateway_client.connectivity import Connectivity
from airbridge.edge_worker.gateway_client.heartbeat import HeartbeatLoop
from airbridge.edge_worker.gateway_client.identity import Identity
from airbridge.edge_worker.gateway_client.join import Join, join_method
from airbridge.edge_worker.gateway_client.region import StoreMaker, WorkerRegion
from airbridge.edge_worker.gateway_client.rejoin_key import RejoinKey
from airbridge.edge_worker.gateway_client.reporter import Reporter
from airbridge.edge_worker.gateway_client.retry import RetryDecision
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.lifecycle import Lifecycle
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.ops.metrics import WorkerMetrics
from airbridge.edge_worker.ops.versions import installed
from airbridge.edge_worker.proxy.read_cache import ReadCache
from airbridge.edge_worker.proxy.recorder import Recorder
from airbridge.edge_worker.proxy.region_calls import RegionCalls
from airbridge.edge_worker.runner.limits import cgroups
from airbridge.edge_worker.runner.limits.cgroups import Cgroups, NoCgroups
from airbridge.edge_worker.runner.limits.limits import Limits, Share
from airbridge.edge_worker.runner.sandbox.task_user import TaskUser
from airbridge.edge_worker.runner.settings import RunnerSettings
from airbridge.edge_worker.runner.warm_runner import WarmRunner
from airbridge.edge_worker.settings import MIB, TaskCgroups, TaskSandbox, WorkerSettings, environment
from airbridge.edge_worker.storage.bundles import Bundles
from airbridge.edge_worker.storage.disk import Disk
from airbridge.edge_worker.storage.disk_watch import DiskWatch
from airbridge.edge_worker.storage.logs import LogShipper
from airbridge.edge_worker.transfer import task_credentials
from airbridge.edge_worker.transfer.brokered import BrokeredSession
from airbridge.edge_worker.transfer.client import Transfers
from airbridge.edge_worker.transfer.interfaces import RegionStore
from airbridge.edge_worker.transfer.queue import GatewayQueue
from airbridge.edge_worker.transfer.store import GatewayStore
from airbridge.edge_worker.triggers.triggers import Triggers
from airbridge.edge_worker.work.attempts import Attempt, Attempts
from airbridge.edge_worker.work.claimer import Claimer
from airbridge.edge_worker.work.commands import Commands, refused
from airbridge.edge_worker.work.deadline import start_before
from airbridge.edge_worker.work.launcher import Launcher
from airbridge.edge_worker.work.messages import Messages
from airbridge.edge_worker.work.poller import Poller
from airbridge.edge_worker.work.polling import Polling
from airbridge.edge_worker.work.queue import AsyncQueue, regional_queue
from airbridge.edge_worker.work.results import Results
from airbridge.edge_worker.work.task import Runner

# A gateway answers once it has the whole of a log's part, of which the last of the kernel's buffer takes time over a slow line.
TRANSFER_SECONDS = 60.0


def regional_store(region: RegionSettings, bucket: str, session: Any = None) -> RegionStore:
    """Return a bucket of the worker's region, reached with the session's AWS credentials; without one with this host's."""
    return connect(region.aws, bucket, endpoint_url=region.endpoint_url, session=session)


def queue_by_transport(
    transfers: Transfers, brokered: BrokeredSession
) -> Callable[[RegionSettings], AsyncQueue]:
    """Return the maker of queues that goes the way that the control plane has chosen for the pool."""

    def make(settings: RegionSettings) -> AsyncQueue:
        if settings.transport == "gateway":
            return AsyncQueue(lambda: GatewayQueue(transfers))
        if settings.credentials == "brokered":
            return regional_queue(settings, brokered.get)
        return regional_queue(settings)

    return make


def store_by_transport(transfers: Transfers, brokered: BrokeredSession) -> StoreMaker:
    """Return the maker of stores that goes the way that the control plane has chosen for the pool."""

    def make(settings: RegionSettings, bucket: str) -> RegionStore:
        if settings.transport == "gateway":
            return GatewayStore(transfers, bucket)
        return regional_store(
            settings, bucket, brokered.get() if settings.credentials == "brokered" else None
        )

    return make


@dataclass(frozen=True)
class WorkerComponents:
    """Components that differ between a real worker and one under test: clock, randomness, transport, runner."""

    runner: Runner
    join: Join
    versions: Versions
    queue: Callable[[RegionSettings], AsyncQueue] = regional_queue
    store: StoreMaker = regional_store
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.SystemRandom)
    #: Connections for queue, DAG code and logs by way of the gateway, under the worker's identity.
    transfers: Transfers | None = None


def real_components(settings: WorkerSettings) -> WorkerComponents:
    """Return the components of a real worker. Raises `SettingsError`."""
    transfers = Transfers(
        settings.gateway_url,
        timeout_seconds=TRANSFER_SECONDS,
        connect_timeout_seconds=settings.connect_timeout_seconds,
    )
    brokered = BrokeredSession(transfers)
    return WorkerComponents(
        runner=WarmRunner(runner_settings(settings)),
        join=join_method(settings),
        versions=installed(settings.image_digest),
        queue=queue_by_transport(transfers, brokered),
        store=store_by_transport(transfers, brokered),
        transfers=transfers,
    )


def runner_settings(settings: WorkerSettings) -> RunnerSettings:
    """Return the runner's part of the worker's settings. Raises `SettingsError`."""
    return RunnerSettings(
        airflow_home=settings.airflow_home,
        worker_name=settings.name,
        task_env=settings.task_env,
        task_env_from=settings.task_env_from,
        agent_env=environment(),
        max_templates=settings.max_templates,
        template_memory_bytes=settings.template_memory_mib * MIB,
        parse_ttl_seconds=settings.parse_ttl_seconds,
        kill_grace_seconds=settings.task_kill_grace_seconds,
        hidden=settings.hidden_from_tasks,
        landlock=_landlock_wanted(settings),
        task_user=TaskUser.named(settings.task_user) if settings.task_user else None,
        share=share(settings),
        cgroups=_cgroups(settings),
    )


def share(settings: WorkerSettings) -> Share:
    """Return what a slot's task may use."""
    memory, disk = settings.slot_memory_mib, settings.slot_disk_mib
    limits = Limits(
        memory=None if memory is None else memory * MIB,
        cpus=settings.slot_cpus,
        processes=settings.slot_processes,
        disk=None if disk is None else disk * MIB,
    )
    return Share(settings.slots, limits)


def _cgroups(settings: WorkerSettings) -> Cgroups | NoCgroups:
    if settings.task_cgroups is TaskCgroups.OFF:
        return NoCgroups("task_cgroups is 'off'")
    found = cgroups.find()
    if settings.task_cgroups is TaskCgroups.REQUIRE and isinstance(found, NoCgroups):
        raise SettingsError(f"task_cgroups is 'require', but {found.reason}; 'auto' runs tasks without")
    return found


def _landlock_wanted(settings: WorkerSettings) -> bool:
    if settings.task_sandbox is TaskSandbox.REQUIRE and not landlock.abi():
        raise SettingsError(
            "task_sandbox is 'require', but this kernel offers no Landlock (Linux 5.13 with landlock in CONFIG_LSM or "
            "lsm=, and a seccomp profile that lets its system calls through); 'auto' runs tasks without it"
        )
    return settings.task_sandbox is not TaskSandbox.OFF


@dataclass(frozen=True)
class _Base:
    """Objects that most of the others are built from."""

    settings: WorkerSettings
    components: WorkerComponents
    journal: Journal
    region: WorkerRegion
    lifecycle: Lifecycle
    events: EventLog
    connectivity: Connectivity
    attempts: Attempts
    gateway: Gateway

    @property
    def clock(self) -> Clock:
        return self.components.clock

    def backoff(self) -> Backoff:
        """Return a new backoff within the settings' bounds."""
        s = self.settings
        return Backoff(s.retry_base_seconds, s.retry_cap_seconds, self.components.rng.random)


@dataclass(frozen=True)
class Wiring:
    """Objects that live as long as the worker."""

    events: EventLog
    connectivity: Connectivity
    attempts: Attempts
    gateway: Gateway
    identity: Identity
    reporter: Reporter
    bundles: Bundles
    logs: LogShipper
    launcher: Launcher
    triggers: Triggers
    heartbeat: HeartbeatLoop
    polling: Polling
    disk_watch: DiskWatch
    metrics: WorkerMetrics


def wire(
    *,
    settings: WorkerSettings,
    components: WorkerComponents,
    journal: Journal,
    region: WorkerRegion,
    lifecycle: Lifecycle,
    disk: Disk,
) -> Wiring:
    """Build a worker's objects, each after those that it needs. Raises `SettingsError` if the CA cannot be read."""
    base = _base(settings, components, journal, region, lifecycle)
    identity = _identity(base)
    bundles, logs = _storage(base)

    # The two cycles: a task's records wake the reporter, and the reporter's results go to the task's launcher.
    # The recorder is first called by a running task, so its reference is resolved late.
    def wake(attempt: Attempt) -> None:
        reporter.wake(attempt)

    def confirm_end() -> None:
        heartbeat.trigger()

    recorder = Recorder(base.journal, base.clock, wake, settings.linger_seconds)
    launcher = _launcher(base, bundles, logs, recorder, on_stopped=confirm_end)
    triggers = _triggers(base, bundles, logs, recorder, launcher, on_stopped=confirm_end)
    launcher.stop_trigger = triggers.stop
    results = Results(launcher, recorder)
    reporter = _reporter(base, identity, results)
    disk_watch = DiskWatch(disk, logs, journal, components.clock, settings.logs_max_mib * MIB)
    polling = _polling(base, identity, disk_watch)
    heartbeat = _heartbeat(base, identity, polling, Commands(lifecycle, base.attempts, launcher, identity))
    return Wiring(
        events=base.events,
        connectivity=base.connectivity,
        attempts=base.attempts,
        gateway=base.gateway,
        identity=identity,
        reporter=reporter,
        bundles=bundles,
        logs=logs,
        launcher=launcher,
        triggers=triggers,
        heartbeat=heartbeat,
        polling=polling,
        disk_watch=disk_watch,
        metrics=_metrics(base, logs, heartbeat),
    )


def _metrics(base: _Base, logs: LogShipper, heartbeat: HeartbeatLoop) -> WorkerMetrics:
    return WorkerMetrics(
        port=base.settings.metrics_port,
        host=base.settings.metrics_host,
        attempts=base.attempts,
        connectivity=base.connectivity,
        journal=base.journal,
        logs=logs,
        events=base.events,
        heartbeat=heartbeat,
    )


def _base(
    settings: WorkerSettings,
    components: WorkerComponents,
    journal: Journal,
    region: WorkerRegion,
    lifecycle: Lifecycle,
) -> _Base:
    clock = components.clock
    events = EventLog(journal, clock)
    connectivity = Connectivity(clock, events.connectivity_changed)
    gateway = Gateway(
        settings.gateway_url,
        tls.anonymous_context(_read_ca(settings)),
        connectivity,
        clock,
        timeout_seconds=settings.request_timeout_seconds,
        connect_timeout_seconds=settings.connect_timeout_seconds,
        on_identity=components.transfers.identify if components.transfers else None,
    )
    attempts = Attempts(settings.slots, settings.prefetch, share(settings).slots_for)
    return _Base(settings, components, journal, region, lifecycle, events, connectivity, attempts, gateway)


def _identity(base: _Base) -> Identity:
    def changed(credentials: Credentials) -> None:
        for to_journal in base.region.adopt(credentials):
            base.journal.submit(to_journal)
        variables = task_credentials.prepare(credentials.settings, base.settings)
        base.components.runner.configure(credentials.settings.task_options, variables)
        # Waiting for an identity, or for the region, is waiting for a change.
        base.attempts.notify()

    return Identity(
        region=base.settings.region,
        pool=base.settings.pool,
        name=base.settings.name,
        gateway=base.gateway,
        join=base.components.join,
        rejoin_key=RejoinKey(base.settings.rejoin_key_file),
        versions=base.components.versions,
        backoff=base.backoff,
        changed=changed,
    )


def _storage(base: _Base) -> tuple[Bundles, LogShipper]:
    s = base.settings
    bundles = Bundles(
        s.bundles_dir,
        base.region.bundles,
        base.region.check_snapshot,
        max_bytes=s.bundles_max_mib * MIB,
        backoff=base.backoff,
    )
    logs = LogShipper(
        s.logs_dir,
        base.region.logs,
        base.journal,
        backoff=base.backoff,
        chunk_seconds=s.log_chunk_seconds,
        chunk_bytes=s.log_chunk_max_mib * MIB,
    )
    return bundles, logs


def _launcher(
    base: _Base, bundles: Bundles, logs: LogShipper, recorder: Recorder, on_stopped: Callable[[], None]
) -> Launcher:
    s, clock = base.settings, base.clock

    def may_start(attempt: Attempt) -> bool:
        if not base.lifecycle.active or base.region.settings is None:
            return False
        policy = attempt.grant.disconnect
        if attempt.contact_at is None:
            # Recovered from the journal, without contact since: only work that may run twice starts.
            return policy.stop_after is None
        return clock.elapsed() - attempt.contact_at < start_before(policy)

    return Launcher(
        runner=base.components.runner,
        attempts=base.attempts,
        journal=base.journal,
        bundles=bundles,
        logs=logs,
        recorder=recorder,
        cache=ReadCache(clock, s.cache_ttl_seconds),
        connectivity=base.connectivity,
        clock=clock,
        events=base.events,
        cut_off_after=s.cut_off_after_seconds,
        cancel_grace=s.cancel_grace_seconds,
        may_start=may_start,
        on_stopped=on_stopped,
        region_calls=RegionCalls(base.region),
    )


def _triggers(
    base: _Base,
    bundles: Bundles,
    logs: LogShipper,
    recorder: Recorder,
    launcher: Launcher,
    *,
    on_stopped: Callable[[], None],
) -> Triggers:
    return Triggers(
        runner=base.components.runner,
        attempts=base.attempts,
        bundles=bundles,
        logs=logs,
        recorder=recorder,
        clock=base.clock,
        backoff=base.backoff,
        directory=base.settings.logs_dir,
        proxy_of=launcher.proxy_of,
        may_start=lambda: base.lifecycle.active and base.region.settings is not None,
        settle=launcher.settle,
        on_stopped=on_stopped,
    )


def _on_identity(base: _Base, identity: Identity) -> Callable[[RetryDecision, GatewayError], None]:
    def on_identity(decision: RetryDecision, error: GatewayError) -> None:
        refused(base.lifecycle, identity, decision, error)

    return on_identity


def _reporter(base: _Base, identity: Identity, results: Results) -> Reporter:
    return Reporter(
        gateway=base.gateway,
        journal=base.journal,
        connectivity=base.connectivity,
        clock=base.clock,
        events=base.events,
        backoff=base.backoff(),
        on_answer=results.answered,
        on_rejected=results.rejected,
        on_fenced=results.fenced,
        on_identity=_on_identity(base, identity),
    )


def _polling(base: _Base, identity: Identity, disk_watch: DiskWatch) -> Polling:
    def may_claim() -> bool:
        return (
            base.lifecycle.active
            and base.gateway.identified
            and base.journal.accepts_grants
            and disk_watch.has_space
        )

    def make_poller(queue: AsyncQueue) -> Poller:
        messages = Messages(
            queue,
            events=base.events,
            backoff=base.backoff,
            rng=base.components.rng,
            poll_seconds=base.settings.poll_seconds,
        )
        claimer = Claimer(
            gateway=base.gateway,
            attempts=base.attempts,
            journal=base.journal,
            messages=messages,
            clock=base.clock,
            events=base.events,
            backoff=base.backoff,
            on_identity=_on_identity(base, identity),
        )
        return Poller(
            messages=messages,
            claimer=claimer,
            attempts=base.attempts,
            connectivity=base.connectivity,
            clock=base.clock,
            events=base.events,
            verifier=base.region.verifier,
            may_claim=may_claim,
        )

    return Polling(base.components.queue, make_poller)


def _heartbeat(base: _Base, identity: Identity, polling: Polling, commands: Commands) -> HeartbeatLoop:
    return HeartbeatLoop(
        gateway=base.gateway,
        attempts=base.attempts,
        journal=base.journal,
        clock=base.clock,
        rng=base.components.rng,
        backoff=base.backoff(),
        versions=base.components.versions,
        state=lambda: base.lifecycle.mode.reported,
        trust_version=lambda: identity.trust_version,
        claiming=lambda: polling.claiming,
        queue_error=lambda: polling.queue_error,
        offered=polling.offered,
        handler=commands,
        events=base.events,
        interval_seconds=base.settings.heartbeat_seconds,
    )


def _read_ca(settings: WorkerSettings) -> str:
    try:
        return settings.ca_file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"ca_file {settings.ca_file} cannot be read: {error}") from error
