"""Deployments, and what they need by the fitted costs: shares of cores, memory and WAL, and their simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from tests.benchmarks.measured import percentiles
from tests.benchmarks.sizing import cost_model
from tests.benchmarks.sizing.cost_model import KINDS, SPACING, Costs, Load, batches
from tests.benchmarks.sizing.simulation import Batch, Demand, Outcome, Platform, Service, simulate

WORK_THREADS: Final = 8
"""`[airbridge] gateway_threads` by default."""
CLAIM_THREADS: Final = 4
POLL_SECONDS: Final = 20.0
"""Longest wait of a poll through the gateway."""
CONNECTIONS_A_GATEWAY: Final = 29
"""Most connections of a gateway to Postgres."""
BATCH_ROUND_TRIPS: Final = 9
CLAIM_ROUND_TRIPS: Final = 10
EXCHANGE_ROUND_TRIPS: Final = 10
"""Statements, with BEGIN and COMMIT."""

LOOKED_AT: Final = 2_000
"""Running tasks that a scheduler looks at again and again: 20 runs in a loop, which is Airflow's default, of 100 tasks each."""

ROUND_TRIP: Final = 0.0005
"""Assumed: seconds from a gateway to Postgres and back in one region."""
COMMIT: Final = 0.002
"""Assumed: seconds that a commit waits for the disk. The local platform's Postgres does not wait."""
WAL_LIMIT: Final = 125e6
"""Assumed: bytes a second that the disk takes, as an AWS gp3 volume at its base price."""

WANTED: Final = 1.0
"""Seconds that heartbeats and claims may take at p99."""
WALL: Final = 0.7
"""Share of a resource beyond which it should not be loaded."""
SECONDS: Final = 8.0
"""Of a simulation."""
WARM_UP: Final = 1.0


@dataclass(frozen=True)
class Deployment:
    """Workers, what they do, and what serves them."""

    workers: int = 100_000
    heartbeat_interval: float = 10.0
    tasks_a_minute: float = 0.1
    """Of each worker."""
    task_minutes: float = 10.0
    """Length of a task: while it runs, its worker's heartbeats renew a lease."""
    through_gateway: bool = False
    """Whether workers poll their queue through the gateway."""
    burst: float = 1.0
    """Tasks come at so many times their mean rate, and otherwise not at all."""
    gateways: int = 1
    postgres_cores: int = 16
    schedulers: int = 4

    @property
    def heartbeats(self) -> float:
        """Heartbeats a second."""
        return self.workers / self.heartbeat_interval

    @property
    def tasks(self) -> float:
        """Tasks a second."""
        return self.workers * self.tasks_a_minute / 60

    @property
    def load(self) -> Load:
        """Load of a second; `rest` is of one gateway, or of the platform."""
        holding = min(1.0, self.tasks_a_minute * self.task_minutes)
        made = self.gateways * batches(self.heartbeats / self.gateways)
        in_a_batch = self.heartbeats / made if made else 0.0
        return Load(
            rest=1.0,
            worker=self.workers,
            batch=made,
            heartbeat=self.heartbeats,
            renewal=made * (1.0 - (1.0 - holding) ** in_a_batch),
            lease=self.heartbeats * holding,
            running=min(self.tasks * self.task_minutes * 60, LOOKED_AT * self.schedulers),
            placing=self.tasks,
            claim=self.tasks,
            exchange=self.tasks,
            receive=(self.workers / POLL_SECONDS + self.tasks) if self.through_gateway else 0.0,
        )


@dataclass(frozen=True)
class Model:
    """Fitted costs by resource, and what they were fitted to."""

    costs: Mapping[str, Costs]
    wal: Costs
    """Bytes."""
    memory_mb: tuple[float, float]
    """Of a gateway, and of a connection."""

    def spent(self, deployment: Deployment, resource: str) -> dict[str, float]:
        """Return the cores that each kind of request needs of a resource.

        Every gateway, and every scheduler, has what it does at rest. Two schedulers are taken to do twice what one does.
        """
        processes = {"gateway": deployment.gateways, "scheduler": deployment.schedulers}.get(resource, 1)
        load = deployment.load
        load = replace(load, rest=processes, worker=load.worker * processes)
        if resource == "scheduler":
            # It looks at running tasks as often as it has time to: that makes no wall.
            load = replace(load, running=0.0)
        return {
            kind: self.costs[resource][kind] * value for kind, value in zip(KINDS, load.values(), strict=True)
        }

    def gateway(self, deployment: Deployment) -> float:
        """Return the share of each gateway's core that is busy; 1.2 would be more than it has."""
        return sum(self.spent(deployment, "gateway").values()) / deployment.gateways

    def postgres(self, deployment: Deployment) -> float:
        """Return the share of Postgres's cores."""
        return sum(self.spent(deployment, "postgres").values()) / deployment.postgres_cores

    def scheduler(self, deployment: Deployment) -> float:
        """Return the share of each scheduler's core."""
        return sum(self.spent(deployment, "scheduler").values()) / deployment.schedulers

    def wal_bytes(self, deployment: Deployment) -> float:
        """Return bytes of WAL a second."""
        return cost_model.cost(self.wal, deployment.load)

    def memory(self, deployment: Deployment) -> float:
        """Return megabytes of all gateways."""
        connections = deployment.workers * (2 if deployment.through_gateway else 1)
        return self.memory_mb[0] * deployment.gateways + self.memory_mb[1] * connections

    def shares(self, deployment: Deployment) -> dict[str, float]:
        """Return the share of each resource that is used."""
        return {
            "gateways": self.gateway(deployment),
            "Postgres": self.postgres(deployment),
            "schedulers": self.scheduler(deployment),
            "WAL": self.wal_bytes(deployment) / WAL_LIMIT,
        }

    def service(self, kind: str, round_trips: int) -> Service:
        """Return the cost of one request of a kind."""
        loop = min(self.costs["gateway_loop"][kind], self.costs["gateway"][kind])
        thread = self.costs["gateway"][kind] - loop
        return Service(loop, thread, self.costs["postgres"][kind], round_trips)

    def _batch(self, load: Load) -> Service:
        """Return the cost of a batch of the load's heartbeats, without what each adds."""
        renewing = load.renewal / load.batch if load.batch else 0.0
        batch, renewal = self.service("batch", BATCH_ROUND_TRIPS), self.service("renewal", 0)
        return Service(
            batch.loop + renewing * renewal.loop,
            batch.thread + renewing * renewal.thread,
            batch.database + renewing * renewal.database,
            BATCH_ROUND_TRIPS,
        )

    def platform(self, deployment: Deployment) -> Platform:
        """Return a deployment as it is simulated."""
        load = deployment.load
        holding = load.lease / load.heartbeat if load.heartbeat else 0.0
        heartbeat, lease = self.service("heartbeat", 0), self.service("lease", 0)
        each = Service(
            heartbeat.loop + holding * lease.loop,
            heartbeat.thread + holding * lease.thread,
            heartbeat.database + holding * lease.database,
            0,
        )
        always = Load(rest=1.0, worker=load.worker, running=load.running, receive=load.receive)
        per_gateway = replace(always, running=0.0, receive=load.receive / deployment.gateways)
        return Platform(
            gateways=deployment.gateways,
            heartbeat=Batch(self._batch(load), each),
            claim=self.service("claim", CLAIM_ROUND_TRIPS),
            exchange=self.service("exchange", EXCHANGE_ROUND_TRIPS),
            claim_threads=CLAIM_THREADS,
            work_threads=WORK_THREADS,
            postgres_cores=deployment.postgres_cores,
            spacing=SPACING,
            gateway_rest=min(0.95, cost_model.cost(self.costs["gateway"], per_gateway)),
            postgres_others=min(
                0.95, cost_model.cost(self.costs["postgres"], always) / deployment.postgres_cores
            ),
            round_trip=ROUND_TRIP,
            commit=COMMIT,
        )

    def simulated(self, deployment: Deployment) -> Outcome:
        """Simulate a deployment."""
        demand = Demand(
            deployment.heartbeats,
            deployment.tasks,
            beside=self.costs["postgres"]["placing"],
            claims_within=SECONDS / deployment.burst,
        )
        warm_up = WARM_UP if deployment.burst == 1.0 else 0.0
        return simulate(self.platform(deployment), demand, SECONDS, warm_up)

    def least_gateways(self, deployment: Deployment) -> tuple[Deployment, Outcome]:
        """Return a deployment with the least number of gateways that is fast enough, and what was simulated of it.

        Raises `ValueError` if more gateways do not help.
        """
        count = next(
            (each for each in range(1, 1_000) if self.gateway(replace(deployment, gateways=each)) < 0.98), 1
        )
        while True:
            tried = replace(deployment, gateways=count)
            # More gateways make more batches for Postgres; and where they are more than half idle, it is not they that are slow.
            if self.postgres(tried) >= 1.0 or (count > 1 and self.gateway(tried) < 0.4):
                raise ValueError(f"no number of gateways up to {count} serves {deployment}")
            outcome = self.simulated(tried)
            if is_fast(outcome):
                return tried, outcome
            count += max(1, count // 20)

    def wall(self, deployment: Deployment) -> dict[str, int]:
        """Return the number of workers with which each resource of a deployment is used up to `WALL`."""
        return {name: self._workers_at_wall(deployment, name) for name in self.shares(deployment)}

    def _workers_at_wall(self, deployment: Deployment, resource: str) -> int:
        low, high = 0, 100_000_000
        while high - low > 1:
            middle = (low + high) // 2
            below = self.shares(replace(deployment, workers=middle))[resource] <= WALL
            low, high = (middle, high) if below else (low, middle)
        return low


def is_fast(outcome: Outcome) -> bool:
    """Return whether all requests are answered, and heartbeats and claims within `WANTED` at p99."""
    return not outcome.unanswered and all(
        percentiles(outcome.seconds[kind]).get("p99", 0.0) < WANTED for kind in ("heartbeat", "claim")
    )
