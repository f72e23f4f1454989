"""Metrics of a worker: those that are defined for it, with the right counts."""

from __future__ import annotations

import asyncio
import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.test_agent import succeed

from airbridge.core import metrics
from airbridge.core.metrics import Kind, Source

pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")


def test_worker_exposes_defined_metrics(world: World) -> None:
    """Exactly the defined metrics are exposed, with their kinds; a task that ran has been counted."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def scrape() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
            return text

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(succeed, metrics_port=port):
            await until(lambda: item.state == "settled")
            # The item is settled at the gateway before the worker has counted the answer.
            await asyncio.sleep(0.2)
            families = {
                family.name: family
                for family in text_string_to_metric_families(await asyncio.to_thread(scrape))
            }
        mine = {
            each.name.removesuffix("_total"): each for each in metrics.ALL if each.source is Source.WORKER
        }
        assert set(families) == set(mine)
        assert {name: str(mine[name].kind) for name in mine} == {
            name: family.type for name, family in families.items()
        }
        values = {
            (s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples
        }
        assert 1 == values["airbridge_worker_starts_total", "cold"]
        assert 1 == values["airbridge_worker_bundle_lookups_total", "miss"]
        assert values["airbridge_worker_report_delay_seconds_count",] >= 1
        assert 4 == values["airbridge_worker_slots",]
        assert Kind.GAUGE == mine["airbridge_worker_slots"].kind

    asyncio.run(scenario())
