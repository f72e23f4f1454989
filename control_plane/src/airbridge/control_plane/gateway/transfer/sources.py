"""Queues and buckets that the gateway reads and writes for workers, by the catalogue."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.aws.object_store import ObjectStore, connect
from airbridge.core.aws.queue import SqsQueue, WorkQueue, sqs_client
from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import RefusalReason
from airbridge.core.regions import Pool, Region

QueueMaker = Callable[[Region, Pool], WorkQueue]
StoreMaker = Callable[[Region, str], ObjectStore]

T = TypeVar("T")


def sqs_queue(region: Region, pool: Pool) -> WorkQueue:
    """Return a pool's queue."""
    return SqsQueue(sqs_client(region.aws, region.endpoint_url), pool.queue_url)


def s3_store(region: Region, bucket: str) -> ObjectStore:
    """Return a bucket of a region."""
    return connect(region.aws, bucket, endpoint_url=region.endpoint_url, attempts=2)


class Sources:
    """Queues and buckets that workers reach through the gateway: of their own pool and region, if the catalogue has them so. Safe between threads.

    Its methods connect at first use, which takes about a second: call them in threads.
    """

    def __init__(
        self, catalogue: Catalogue, queue: QueueMaker = sqs_queue, store: StoreMaker = s3_store
    ) -> None:
        self._catalogue = catalogue
        self._make_queue = queue
        self._make_store = store
        self._queues: dict[tuple[str, str], WorkQueue] = {}
        self._stores: dict[tuple[str, str], ObjectStore] = {}
        self._lock = threading.Lock()

    def require(self, name: WorkerName) -> tuple[Region, Pool]:
        """Return a worker's region and pool. Raises `Refused` unless its transport is the gateway."""
        region = self._catalogue.region(name.region)
        pool = region.pool(name.pool) if region else None
        if region is None or pool is None or region.transport_of(pool) != "gateway":
            raise Refused(
                403,
                RefusalReason.FORBIDDEN,
                f"pool {name.pool}@{name.region} does not receive through the gateway: its transport in the catalogue is not 'gateway'",
                rule=f"transport of {name.pool}@{name.region}",
            )
        return region, pool

    def queue(self, name: WorkerName) -> WorkQueue:
        """Return the queue of a worker's pool. Raises `Refused`; see `require`."""
        region, pool = self.require(name)
        return self._kept(self._queues, (region.name, pool.name), lambda: self._make_queue(region, pool))

    def code(self, name: WorkerName) -> ObjectStore:
        """Return the bucket of DAG code of a worker's region. Raises `Refused`; see `require`."""
        region, _ = self.require(name)
        return self._store(region, region.bundle_bucket)

    def logs(self, name: WorkerName) -> ObjectStore:
        """Return the bucket of logs of a worker's region. Raises `Refused`; see `require`."""
        region, _ = self.require(name)
        return self._store(region, region.log_bucket)

    def _store(self, region: Region, bucket: str) -> ObjectStore:
        return self._kept(self._stores, (region.name, bucket), lambda: self._make_store(region, bucket))

    def _kept(self, made: dict[tuple[str, str], T], key: tuple[str, str], make: Callable[[], T]) -> T:
        with self._lock:
            if key not in made:
                made[key] = make()
            return made[key]
