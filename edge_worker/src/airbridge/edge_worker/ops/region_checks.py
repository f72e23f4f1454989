"""The doctor's checks of the region's queue and buckets, with the credentials of this host.

Where they are is known from the last enrolment, by the journal. Nothing is taken from the queue, and nothing stays in a bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from airbridge.core.aws.object_store import connect
from airbridge.core.aws.queue import SqsQueue, sqs_client
from airbridge.core.exceptions import QueueError, StoreError
from airbridge.core.protocol import RegionSettings
from airbridge.edge_worker.gateway_client.region import REGION_META
from airbridge.edge_worker.journal import file
from airbridge.edge_worker.ops.check_result import CheckResult
from airbridge.edge_worker.settings import WorkerSettings


def check(settings: WorkerSettings) -> Iterator[CheckResult]:
    """Yield the result of each check; one that passes if the region is not known yet."""
    region = known_region(settings)
    if region is None:
        yield CheckResult("queue", True, "not known before the first enrolment")
        return
    if region.transport == "gateway":
        # This host has no credentials to check: the running agent uses its certificate, and reports what it meets.
        yield CheckResult("queue, DAG code and logs", True, f"through the gateway {settings.gateway_url}")
        return
    if region.credentials == "brokered":
        # Likewise: the running agent gets them from the gateway, by its certificate.
        yield CheckResult(
            "queue, DAG code and logs", True, f"with credentials of the gateway {settings.gateway_url}"
        )
        return
    yield _result("queue", region.queue_url, lambda: _use_queue(region))
    yield _result("DAG code", f"s3://{region.bundle_bucket}", lambda: _list_bundles(region))
    yield _result("logs", f"s3://{region.log_bucket}", lambda: _write_log(region, settings.name))


def known_region(settings: WorkerSettings) -> RegionSettings | None:
    """Return the region's queue and buckets by the journal; None before the first enrolment."""
    known = file.read_meta(settings.journal_file).get(REGION_META)
    return None if known is None else RegionSettings.model_validate_json(known)


def _result(name: str, place: str, use: Callable[[], None]) -> CheckResult:
    try:
        use()
    except (QueueError, StoreError) as error:
        return CheckResult(name, False, f"{place}: {error}")
    return CheckResult(name, True, place)


def _use_queue(region: RegionSettings) -> None:
    # A receipt that is none: SQS checks address and permissions, and no message is received, hidden or counted.
    SqsQueue(sqs_client(region.aws, region.endpoint_url), region.queue_url).release(["none"])


def _list_bundles(region: RegionSettings) -> None:
    connect(region.aws, region.bundle_bucket, endpoint_url=region.endpoint_url).head("bundles/none")


def _write_log(region: RegionSettings, worker: str) -> None:
    store = connect(region.aws, region.log_bucket, endpoint_url=region.endpoint_url)
    key = f"logs/doctor/{worker}"
    store.put(key, b"")
    store.delete([key])
