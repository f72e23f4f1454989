"""Queries of local mode: regions and task locations from the ledger, and the gateway's request counters."""

from __future__ import annotations

import ssl
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

from airbridge.control_plane.local import state
from airbridge.control_plane.local.exceptions import PlatformUnreachable
from airbridge.control_plane.local.keys import Keys
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.services import postgres
from airbridge.control_plane.local.services.postgres import Postgres

_REGIONS = """
WITH work AS (
  SELECT region, pool,
         count(*) FILTER (WHERE state IN ('placed', 'sent')) AS waiting,
         count(*) FILTER (WHERE state = 'claimed') AS running
  FROM airbridge_work_item WHERE state <> 'settled' AND kind = 'task' GROUP BY region, pool),
fleet AS (
  SELECT region, pool,
         count(*) FILTER (WHERE last_heartbeat_at > now() - interval '90 seconds') AS alive,
         coalesce(sum(slots_total) FILTER (WHERE last_heartbeat_at > now() - interval '90 seconds'), 0) AS slots
  FROM airbridge_worker GROUP BY region, pool)
SELECT coalesce(f.region, w.region), coalesce(f.pool, w.pool),
       coalesce(alive, 0), coalesce(slots, 0), coalesce(waiting, 0), coalesce(running, 0)
FROM fleet f FULL OUTER JOIN work w ON w.region = f.region AND w.pool = f.pool
ORDER BY 1, 2
"""

_TASK_REGIONS = """
SELECT task_id, map_index, region, worker_id FROM airbridge_work_item
WHERE dag_id = %s AND run_id = %s AND kind = 'task' ORDER BY placed_at
"""


class RegionSummary(NamedTuple):
    """Current state of a region's pool."""

    region: str
    pool: str
    workers_alive: int
    slots: int
    waiting: int
    running: int


def server(directory: StateDir) -> Postgres:
    """Return the platform's database server."""
    keys = Keys.model_validate_json(directory.keys_file.read_bytes())
    return Postgres(directory.postgres, keys.ports["postgres"], keys.database_password)


def regions(directory: StateDir) -> list[RegionSummary]:
    """Return every pool that has workers or work."""
    try:
        rows = postgres.query(server(directory), _REGIONS)
    except ConnectionError as error:
        raise PlatformUnreachable(f"the database of {directory.root} does not answer: {error}") from error
    return [RegionSummary(row[0], row[1], int(row[2]), int(row[3]), int(row[4]), int(row[5])) for row in rows]


def task_regions(
    directory: StateDir, dag_id: str, run_id: str
) -> dict[tuple[str, int], tuple[str, str | None]]:
    """Return the region and worker of each task of a run, by task id and map index."""
    rows = postgres.query(server(directory), _TASK_REGIONS, (dag_id, run_id))
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}


def gateway_requests(directory: StateDir) -> dict[str, int]:
    """Return the gateway's count of answered requests since its start, by endpoint of the edge API."""
    url = f"{state.read(directory).operator_url}/operator/v1/metrics"
    token = directory.operator_token_file.read_text().strip()
    context = ssl.create_default_context(cafile=str(directory.ca_file))
    answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, verify=context, trust_env=False)
    counted: dict[str, int] = {}
    for family in text_string_to_metric_families(answer.raise_for_status().text):
        for sample in family.samples:
            if sample.name == "airbridge_gateway_requests_total":
                endpoint = sample.labels["endpoint"]
                counted[endpoint] = counted.get(endpoint, 0) + int(sample.value)
    return counted
