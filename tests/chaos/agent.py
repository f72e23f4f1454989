"""A worker behind links that can fail: ``python -m tests.chaos.agent``, configured as `airbridge-worker run` is.

It is the real agent with its real parts, but for two things: it reaches SQS and S3 by the URLs in CHAOS_SQS_URL and
CHAOS_S3_URL, not by those from the gateway; and, if CHAOS_DURABLE names a directory, that directory always holds the
part of the journal that would survive a power cut (`tests.chaos.power`). CHAOS_LACKS makes it a mutant (`tests.chaos.mutations`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.chaos import power

from airbridge.core.aws.object_store import ObjectStore
from airbridge.core.protocol import TRIGGER_EVENT, RegionSettings
from airbridge.core.sandbox import hardening
from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.cli import configure_logging
from airbridge.edge_worker.proxy.recorder import Recorder
from airbridge.edge_worker.settings import WorkerSettings, load
from airbridge.edge_worker.wiring import WorkerComponents, real_components, regional_store
from airbridge.edge_worker.work.attempts import Entry
from airbridge.edge_worker.work.queue import AsyncQueue, regional_queue

SQS_URL = "CHAOS_SQS_URL"
S3_URL = "CHAOS_S3_URL"
DURABLE = "CHAOS_DURABLE"
LACKS = "CHAOS_LACKS"
JOURNAL_OF_EVENTS = "journal of events"


def by_way_of(settings: RegionSettings, url: str) -> RegionSettings:
    """The region's settings with queue and buckets behind another address."""
    path = urlsplit(settings.queue_url).path
    queue_url = urlunsplit((*urlsplit(url)[:2], path, "", ""))
    return settings.model_copy(update={"endpoint_url": url, "queue_url": queue_url})


def parts(settings: WorkerSettings) -> WorkerComponents:
    """The parts of a real worker, with queue and buckets behind the links."""
    sqs_url, s3_url = os.environ[SQS_URL], os.environ[S3_URL]

    def queue(region: RegionSettings) -> AsyncQueue:
        return regional_queue(by_way_of(region, sqs_url))

    def store(region: RegionSettings, bucket: str) -> ObjectStore:
        return regional_store(by_way_of(region, s3_url), bucket)

    return replace(real_components(settings), queue=queue, store=store)


def keep_events_in_memory() -> None:
    """Send the events of triggers without having journalled them."""
    make_durable = Recorder._make_durable

    async def forgetful(self: Recorder, entry: Entry) -> None:
        if entry.record.path == TRIGGER_EVENT:
            entry.durable = True
        else:
            await make_durable(self, entry)

    Recorder._make_durable = forgetful  # type: ignore[method-assign]


async def main() -> int:
    """Run until SIGTERM; a second one stops hard."""
    settings = load()
    if durable := os.environ.get(DURABLE):
        power.keep_what_is_synced(settings.journal_file, Path(durable))
    if os.environ.get(LACKS) == JOURNAL_OF_EVENTS:
        keep_events_in_memory()
    agent = Agent(settings, parts(settings))
    asked = 0

    def on_signal() -> None:
        nonlocal asked
        asked += 1
        (agent.drain if asked == 1 else agent.hard_stop)()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return int(await agent.run())


if __name__ == "__main__":
    configure_logging(as_json=True)
    hardening.harden()
    sys.exit(asyncio.run(main()))
