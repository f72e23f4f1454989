"""Puts a started executor together from its settings, and says clearly what is missing."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from airbridge.executor import _airflow, settings
from airbridge.executor.backoff import Backoff
from airbridge.executor.bell import Bell
from airbridge.executor.exceptions import ConfigurationError
from airbridge.executor.executor import Machinery
from airbridge.executor.intake import Intake
from airbridge.executor.keeper import Keeper
from airbridge.executor.ledger import notices
from airbridge.executor.ledger.manager import LedgerDBManager
from airbridge.executor.outbox import Outbox
from airbridge.executor.pace import Pace
from airbridge.executor.placement import Placement
from airbridge.executor.queue import SqsQueue, WorkQueue, sqs_client
from airbridge.executor.regions import Catalogue, Pool, Region
from airbridge.executor.scaling import RegionSignal, Scaling, cloudwatch, ledger_backlogs
from airbridge.executor.signing_key import FollowedSigner

SIGNING_KEY = "signing.key"
BELL_RETRY_SECONDS = 1.0
BELL_RETRY_LIMIT_SECONDS = 60.0


def build(owner_job_id: int | None) -> Machinery:
    """Read what the executor needs. Raises `ConfigurationError`."""
    configured = settings.load()
    catalogue = Catalogue.read(configured.regions_file)
    check_ledger()
    outbox = Outbox(
        catalogue.regions,
        settings=configured,
        signer=FollowedSigner(configured.secrets_dir / SIGNING_KEY),
        new_session=_airflow.new_session,
        queue_of=sqs_queues(),
        random=random.random,
    )
    bell = Bell(
        owner_job_id=owner_job_id,
        connect=partial(_airflow.listen, notices.CHANNEL),
        idle_with=_airflow.idle_with,
        backoff=Backoff(BELL_RETRY_SECONDS, BELL_RETRY_LIMIT_SECONDS, random.random),
    )
    return Machinery(
        intake=Intake(Placement(catalogue, configured, unset_queues())),
        outbox=outbox,
        keeper=Keeper(
            settings=configured,
            owner_job_id=owner_job_id,
            new_session=_airflow.new_session,
            heartbeat_timeout=float(
                _airflow.airflow_option("scheduler", "task_instance_heartbeat_timeout") or 300
            ),
        ),
        scaling=Scaling(_signals(configured, catalogue)),
        bell=bell,
        pace=Pace(bell, outbox.full, int(_airflow.airflow_option("scheduler", "max_tis_per_query") or 0)),
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
            metrics_of=lambda each: cloudwatch(each, namespace),
        )
        for region in catalogue.regions
    }


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


def sqs_queues() -> Callable[[Region, Pool], WorkQueue]:
    """Return a finder of queues that keeps one client a region: they are slow to make."""
    clients: dict[str, object] = {}

    def find(region: Region, pool: Pool) -> WorkQueue:
        client = clients.get(region.name)
        if client is None:
            client = clients[region.name] = sqs_client(region.name, region.endpoint_url)
        return SqsQueue(client, pool.queue_url)

    return find
