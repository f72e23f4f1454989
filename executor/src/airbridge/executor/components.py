"""Construction of a started executor's components from its settings; errors name what is missing."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from airbridge.core.aws.queue import SqsQueue, WorkQueue, sqs_client
from airbridge.core.backoff import Backoff
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.regions import Pool, Region
from airbridge.executor import _airflow, settings
from airbridge.executor.dispatch.outbox import Outbox
from airbridge.executor.dispatch.scaling import RegionSignal, Scaling, cloudwatch, ledger_backlogs
from airbridge.executor.dispatch.signing_key import ReloadingSigner
from airbridge.executor.executor import Components
from airbridge.executor.ledger import notices
from airbridge.executor.ledger.manager import LedgerDBManager
from airbridge.executor.ledger.sharing.fair_shares import FairShares
from airbridge.executor.ledger.sharing.limits import Limits
from airbridge.executor.placement.placement import Placement
from airbridge.executor.placement.workloads import Workloads
from airbridge.executor.scheduling import _airflow as _airflow_loop
from airbridge.executor.scheduling.listener import NotificationListener
from airbridge.executor.scheduling.reconciler import Reconciler
from airbridge.executor.scheduling.throttle import Throttle

SIGNING_KEY = "signing.key"
# Imported by libraries at their first use: by `socket` for a host's name, by SQLAlchemy for many rows on Postgres.
USED_IN_THREADS = ("encodings.idna", "psycopg2.sql")
LISTENER_RETRY_SECONDS = 1.0
LISTENER_RETRY_LIMIT_SECONDS = 60.0


def build(owner_job_id: int | None) -> Components:
    """Build the components from settings, catalogue and keys. Raises `ConfigurationError`."""
    configured = settings.load()
    catalogue = Catalogue.read(configured.regions_file)
    check_ledger()
    load()
    outbox = Outbox(
        catalogue.regions,
        settings=configured,
        signer=ReloadingSigner(configured.secrets_dir / SIGNING_KEY),
        new_session=_airflow.new_session,
        queue_of=sqs_queues(catalogue.regions),
        random=random.random,
        shares=FairShares(catalogue.teams) if catalogue.teams else None,
        limits=Limits(catalogue.limits),
    )
    listener = NotificationListener(
        owner_job_id=owner_job_id,
        connect=partial(_airflow_loop.listen, notices.CHANNEL),
        replace_sleep=_airflow_loop.replace_idle_sleep,
        backoff=Backoff(LISTENER_RETRY_SECONDS, LISTENER_RETRY_LIMIT_SECONDS, random.random),
    )
    return Components(
        workloads=Workloads(Placement(catalogue, configured, unset_queues()), catalogue.team_of),
        outbox=outbox,
        reconciler=Reconciler(
            settings=configured,
            owner_job_id=owner_job_id,
            new_session=_airflow.new_session,
            heartbeat_timeout=float(
                _airflow.airflow_option("scheduler", "task_instance_heartbeat_timeout") or 300
            ),
        ),
        scaling=Scaling(_signals(configured, catalogue)),
        listener=listener,
        throttle=Throttle(
            listener, outbox.full, int(_airflow.airflow_option("scheduler", "max_tis_per_query") or 0)
        ),
        worker_alive_seconds=configured.worker_alive_seconds,
    )


def _signals(configured: settings.Settings, catalogue: Catalogue) -> dict[str, RegionSignal]:
    namespace = configured.scaling_namespace
    if namespace is None:
        return {}
    return {
        region.name: RegionSignal(
            region,
            interval_seconds=configured.scaling_interval,
            backlog_of=ledger_backlogs(_airflow.new_session, configured.worker_alive_seconds),
            metrics=cloudwatch(region, namespace),
        )
        for region in catalogue.regions
    }


def load() -> None:
    """Import what the components' threads use first, so that they import nothing: see `fork_safety`."""
    for name in USED_IN_THREADS:
        with suppress(ImportError):  # no driver of Postgres
            importlib.import_module(name)
    _airflow.load_models()


def check_ledger() -> None:
    """Raise `ConfigurationError` unless the ledger's tables are there and current."""
    with _airflow.new_session() as session:
        if not LedgerDBManager(session).check_migration():
            raise ConfigurationError(
                "the ledger's tables are missing or out of date; set [database] external_db_managers to "
                "'airbridge.executor.ledger.manager.LedgerDBManager' and run 'airflow db migrate'"
            )


def unset_queues() -> tuple[str, ...]:
    """Return the queue names that tasks have which name none."""
    return ("default", _airflow.airflow_option("operators", "default_queue") or "default")


def sqs_queues(regions: Iterable[Region]) -> Callable[[Region, Pool], WorkQueue]:
    """Return a finder of queues. Their clients, one a region, are made here: see `fork_safety`."""
    clients = {region.name: sqs_client(region.aws, region.endpoint_url) for region in regions}

    def find(region: Region, pool: Pool) -> WorkQueue:
        return SqsQueue(clients[region.name], pool.queue_url)

    return find
