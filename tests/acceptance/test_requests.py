"""Frequency of the edge's requests to the control plane."""

from __future__ import annotations

import time

from tests.acceptance.runs import run_with_trouble
from tests.support.platform import LocalPlatform, wait_for

from airbridge.control_plane.local import overview
from airbridge.core.aws.queue import SqsQueue
from airbridge.core.catalogue import Catalogue

IDLE_SECONDS = 30.0
HEARTBEAT_SECONDS = 10.0
# A task of another test may end in the first one.
PERIODS = 3


def test_an_idle_worker_only_heartbeats(platform: LocalPlatform) -> None:
    """With nothing to do, the only requests are heartbeats, at their interval."""
    wait_for(lambda: nothing_on_its_way(platform), "the queues to be empty", 120)
    for _ in range(PERIODS):
        made = requests_of_a_period(platform)
        if set(made) == {"heartbeat"}:
            break
    assert {"heartbeat"} == set(made)
    assert made["heartbeat"] <= len(platform.worker_pids()) * (IDLE_SECONDS / HEARTBEAT_SECONDS + 1)


def requests_of_a_period(platform: LocalPlatform) -> dict[str, int]:
    """Return the gateway's requests within `IDLE_SECONDS`, by endpoint."""
    before = overview.gateway_requests(platform.directory)
    time.sleep(IDLE_SECONDS)
    after = overview.gateway_requests(platform.directory)
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


def nothing_on_its_way(platform: LocalPlatform) -> bool:
    """No message waits, or comes again because the worker that had it was killed before it deleted it."""
    places = Catalogue.read(platform.directory.regions_file).places()
    depths = [
        SqsQueue(platform.aws_client("sqs", region.name), str(pool.queue_url)).depth()
        for region, pool in places
    ]
    return not any(depth.visible or depth.in_flight for depth in depths)


def test_a_task_costs_few_requests(platform: LocalPlatform) -> None:
    """Under load, claim and report together are at most two requests a task; the number is printed."""
    before = overview.gateway_requests(platform.directory)
    run_with_trouble(platform, "fifty", lambda: None, seconds=0.0).check(50)
    after = overview.gateway_requests(platform.directory)
    made = {name: after[name] - before.get(name, 0) for name in after}
    per_task = (made.get("claim", 0) + made.get("exchange", 0)) / 50
    print(f"\ngateway requests a task: {per_task:.2f} ({made})")
    assert per_task <= 2.0
