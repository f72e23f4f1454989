"""State of a control plane's workers and their work: the gateway's operators' API and Airflow's REST API."""

from __future__ import annotations

import ssl
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Annotated, Any, Protocol

import httpx
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from airbridge.ci.exceptions import ControlPlaneError

ACTIVE = "active"


class RunningVersions(BaseModel):
    """Versions reported by a worker."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    airbridge: str = ""
    airflow: str = ""
    image: str | None = None


class Worker(BaseModel):
    """A worker as the operators' API lists it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    region: str
    pool: str
    state: str
    wanted: str = ACTIVE
    versions: Annotated[RunningVersions, Field(default_factory=RunningVersions)]
    slots_used: int = 0
    enrolled_at: AwareDatetime | None = None
    last_heartbeat_at: AwareDatetime | None = None

    def alive(self, now: datetime, silence_seconds: float) -> bool:
        """Return whether its last heartbeat is recent."""
        heard = self.last_heartbeat_at
        return heard is not None and (now - heard).total_seconds() <= silence_seconds

    def healthy(self, now: datetime, silence_seconds: float) -> bool:
        """Return whether it is live, takes work, and no other state was ordered."""
        return self.alive(now, silence_seconds) and self.state == ACTIVE and self.wanted == ACTIVE


@dataclass(frozen=True)
class Outcomes:
    """Task instances that ended: how many, and how many of them failed."""

    finished: int = 0
    failed: int = 0

    @property
    def share_failed(self) -> float:
        """Between 0 and 1."""
        return self.failed / self.finished if self.finished else 0.0


_TASK_INSTANCES = "/api/v2/dags/~/dagRuns/~/taskInstances"
# A task is compared if it ran so often before; this is added to every duration, so that those of short tasks are not all noise.
_LEAST_EARLIER_RUNS = 3
_NOISE_SECONDS = 1.0


@dataclass(frozen=True)
class Slowdown:
    """Durations of tasks beside those of earlier runs of the same tasks: runs that could be compared, and the median of their ratios."""

    runs: int = 0
    ratio: float = 1.0


class ControlPlane(Protocol):
    """Interface to a control plane, as promotion and deployment use it."""

    def workers(self) -> list[Worker]:
        """All workers, whatever state they are in."""

    def drain(self, worker: str, comment: str) -> None:
        """Order a worker to drain."""

    def outcomes(self, regions: Collection[str], since: datetime) -> Outcomes:
        """Return the outcomes of the tasks of these regions' queues since then."""

    def slowdown(self, regions: Collection[str], since: datetime) -> Slowdown:
        """Return how long tasks of these regions' queues take since then, beside their runs before."""


@dataclass(frozen=True)
class OverHttp:
    """A control plane over HTTPS. `operators` and `airflow` are clients with base address, trust and token set."""

    operators: httpx.Client
    airflow: httpx.Client | None = None

    def workers(self) -> list[Worker]:
        """`GET /operator/v1/workers`."""
        content = self._call(self.operators, "GET", "/operator/v1/workers")
        try:
            return [Worker.model_validate(item) for item in content["workers"]]
        except (KeyError, TypeError, ValidationError) as error:
            raise ControlPlaneError(f"{self.operators.base_url}: not a list of workers: {error}") from error

    def drain(self, worker: str, comment: str) -> None:
        """`POST /operator/v1/workers/<id>/drain`."""
        self._call(self.operators, "POST", f"/operator/v1/workers/{worker}/drain", json={"comment": comment})

    def outcomes(self, regions: Collection[str], since: datetime) -> Outcomes:
        """Counts of task instances by state, from Airflow's REST API; nothing if there is no client for it."""
        if self.airflow is None:
            return Outcomes()
        counts = {
            state: self._count(self.airflow, regions, since, state)
            for state in ("success", "failed", "up_for_retry")
        }
        failed = counts["failed"] + counts["up_for_retry"]
        return Outcomes(finished=counts["success"] + failed, failed=failed)

    def slowdown(self, regions: Collection[str], since: datetime) -> Slowdown:
        """Ratios of durations, from the last successful runs of each queue in Airflow's REST API; none without a client for it."""
        if self.airflow is None:
            return Slowdown()
        ratios: list[float] = []
        for queue in self._queues(regions):
            before = self._durations(self.airflow, queue, {"end_date_lte": since.isoformat()})
            usual = {task: median(runs) for task, runs in before.items() if len(runs) >= _LEAST_EARLIER_RUNS}
            for task, runs in self._durations(
                self.airflow, queue, {"end_date_gte": since.isoformat()}
            ).items():
                ratios += [
                    (run + _NOISE_SECONDS) / (usual[task] + _NOISE_SECONDS) for run in runs if task in usual
                ]
        return Slowdown(len(ratios), median(ratios)) if ratios else Slowdown()

    def _durations(
        self, client: httpx.Client, queue: str, when: dict[str, str]
    ) -> dict[tuple[str, str], list[float]]:
        """Return the durations, in seconds, of the last successful runs of a queue, by DAG and task."""
        query = {"state": "success", "queue": queue, "order_by": "-end_date", "limit": 100, **when}
        found: dict[tuple[str, str], list[float]] = defaultdict(list)
        for run in self._call(client, "GET", _TASK_INSTANCES, params=query)["task_instances"]:
            if run["duration"] is not None:
                found[run["dag_id"], run["task_id"]].append(float(run["duration"]))
        return found

    def _queues(self, regions: Collection[str]) -> list[str]:
        """Return the queues of these regions: of each region, and of each pool that has a worker."""
        pools = {f"{each.pool}@{each.region}" for each in self.workers() if each.region in regions}
        return sorted({*regions, *pools})

    def _count(self, client: httpx.Client, regions: Collection[str], since: datetime, state: str) -> int:
        query: dict[str, Any] = {"state": state, "end_date_gte": since.isoformat(), "limit": 1}
        return sum(
            int(self._call(client, "GET", _TASK_INSTANCES, params={**query, "queue": queue})["total_entries"])
            for queue in self._queues(regions)
        )

    @staticmethod
    def _call(client: httpx.Client, method: str, path: str, **options: Any) -> Any:
        try:
            response = client.request(method, path, **options)
            response.raise_for_status()
            return response.json()
        except httpx.HTTPStatusError as error:
            said = error.response.text[:300]
            raise ControlPlaneError(
                f"{method} {error.request.url}: {error.response.status_code}: {said}"
            ) from error
        except (httpx.HTTPError, ValueError) as error:
            raise ControlPlaneError(f"{method} {client.base_url}{path}: {error}") from error


def over_http(
    url: str, token: str, ca: str | None, airflow_url: str | None, airflow_token: str | None
) -> OverHttp:
    """A control plane at these addresses. `ca` is a PEM file; without it the system's authorities are trusted."""
    operators = _client(url, token, ca)
    airflow = _client(airflow_url, airflow_token or "", None) if airflow_url else None
    return OverHttp(operators, airflow)


def _client(url: str, token: str, ca: str | None) -> httpx.Client:
    trust = ssl.create_default_context(cafile=ca)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=url, headers=headers, verify=trust, timeout=30)
