"""Which processes make up a local platform: command lines, environments, order. Pure; nothing is started here."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from airbridge.control_plane.local import (
    airflow_config,
    aws,
    credentials,
    emulator,
    environment,
    ports,
    probes,
)
from airbridge.control_plane.local.component import Component, Probe
from airbridge.control_plane.local.keys import Keys
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.postgres import Postgres
from airbridge.control_plane.local.privileges import postgres_user
from airbridge.control_plane.local.terraform import Deployed

MIGRATE = (sys.executable, "-m", "airflow", "db", "migrate")
PORTS = ("postgres", "aws", "credentials", "api-server", "gateway", "operator")

# The order in which they are stopped. The gateway outlives the workers, who report to it to the end.
_WORKERS_AND_AIRFLOW, _GATEWAY, _FOUNDATION = 0, 1, 2


@dataclass(frozen=True)
class Applied:
    """What Terraform made, and the tokens that stand for its roles."""

    deployed: Deployed
    grants: credentials.Grants


@dataclass(frozen=True)
class Plan:
    """Everything that decides the components."""

    options: Options
    directory: StateDir
    keys: Keys
    environ: Mapping[str, str]
    migrate: bool
    """Whether the database still has to be brought to this version's schema."""
    applied: Applied | None = None
    """Set where the platform runs on what Terraform made, and not on an emulator of its own."""

    @property
    def server(self) -> Postgres:
        """The database server."""
        return Postgres(self.directory.postgres, self.keys.ports["postgres"], self.keys.database_password)

    @property
    def resources(self) -> aws.Resources:
        """The emulated AWS' queues and buckets."""
        return aws.Resources(
            home_region=self.options.regions[0].name, regions=self.options.regions, slots=self.options.slots
        )

    @property
    def ui_url(self) -> str:
        """Airflow's UI."""
        return self._http("api-server")

    @property
    def aws_url(self) -> str:
        """The AWS emulator."""
        return self.applied.deployed.endpoint_url if self.applied else self._http("aws")

    @property
    def gateway_url(self) -> str:
        """Where workers connect."""
        return f"https://{ports.LOOPBACK}:{self.keys.ports['gateway']}"

    @property
    def operator_url(self) -> str:
        """Where operators and CI connect."""
        return f"https://{ports.LOOPBACK}:{self.keys.ports['operator']}"

    @property
    def dags(self) -> Path:
        """The folder of DAG files."""
        return self.options.dags or self.directory.dags

    def aws_variables(self, region: str, role_arn: str | None) -> dict[str, str]:
        """Return what gives a process its credentials: those of `role_arn`, where there are roles."""
        if self.applied is None:
            return environment.aws_variables(region)
        if role_arn is None:
            return environment.without_aws(region)
        return credentials.variables(
            self.keys.ports["credentials"], self.applied.grants.token(role_arn), region
        )

    def service_role(self, component: str) -> str | None:
        """Return the role of one of the control plane's processes; None where it has none."""
        if self.applied is None:
            return None
        kind = "scheduler" if component.startswith("scheduler-") else component
        return self.applied.deployed.service_roles.get(kind)

    def worker_role(self, worker: WorkerPlan) -> str | None:
        """Return the role of a worker; None where there are no roles."""
        return self.applied.deployed.worker_roles[worker.region, worker.pool] if self.applied else None

    def _http(self, name: str) -> str:
        return f"http://{ports.LOOPBACK}:{self.keys.ports[name]}"


@dataclass(frozen=True)
class WorkerPlan:
    """One worker: its name says region, pool and number."""

    name: str
    region: str
    pool: str


def workers(options: Options) -> tuple[WorkerPlan, ...]:
    """Return every worker of the platform."""
    return tuple(
        WorkerPlan(f"{region.name}-{pool}-{number}", region.name, pool)
        for region in options.regions
        for pool in region.pools
        for number in range(1, options.workers_per_region + 1)
    )


def components(plan: Plan) -> list[Component]:
    """Return every process, in the order of the display."""
    database = probes.DatabaseProbes(plan.server)
    foundation = [_postgres(plan), _credentials(plan) if plan.applied else _aws(plan)]
    if plan.migrate:
        foundation.append(_migration(plan))
    return [
        *foundation,
        *_airflow(plan, database),
        _gateway(plan),
        *(_worker(plan, worker, database) for worker in workers(plan.options)),
    ]


def _postgres(plan: Plan) -> Component:
    return Component(
        name="postgres",
        argv=plan.server.argv(),
        env=environment.base(plan.environ),
        log=plan.directory.log("postgres"),
        ready=probes.database_answers(plan.server, plan.directory.initial_password_file),
        url=f"postgresql://{ports.LOOPBACK}:{plan.server.port}",
        user=postgres_user(),
        stop_signal=signal.SIGINT,  # "fast" shutdown; SIGTERM would wait for every client
        death_signal=signal.SIGQUIT,
        stop_stage=_FOUNDATION,
    )


def _aws(plan: Plan) -> Component:
    return Component(
        name="aws",
        argv=_python(
            "airbridge.control_plane.local.emulator",
            "--port",
            str(plan.keys.ports["aws"]),
            "--resources",
            str(plan.directory.aws_resources_file),
        ),
        env=environment.base(plan.environ),
        log=plan.directory.log("aws"),
        ready=probes.http_ok(plan.aws_url + emulator.READY_PATH),
        url=plan.aws_url,
        stop_signal=signal.SIGKILL,  # it has nothing to put away
        stop_stage=_FOUNDATION,
    )


def _credentials(plan: Plan) -> Component:
    port = plan.keys.ports["credentials"]
    return Component(
        name="credentials",
        argv=_python(
            "airbridge.control_plane.local.credentials",
            "--port",
            str(port),
            "--grants",
            str(plan.directory.grants_file),
        ),
        env=environment.base(plan.environ),
        log=plan.directory.log("credentials"),
        ready=probes.http_ok(f"http://{ports.LOOPBACK}:{port}{credentials.READY_PATH}"),
        url=plan.aws_url,
        stop_stage=_FOUNDATION,
    )


def _migration(plan: Plan) -> Component:
    return _control_plane(plan, "database", MIGRATE, after=("postgres",), once=True)


def _airflow(plan: Plan, database: probes.DatabaseProbes) -> list[Component]:
    names = ["scheduler", *(f"scheduler-{number}" for number in range(2, plan.options.schedulers + 1))]
    after = _schema(plan)
    api = ("--host", ports.LOOPBACK, "--port", str(plan.keys.ports["api-server"]), "--workers", "1")
    return [
        _control_plane(
            plan,
            "api-server",
            _python("airflow", "api-server", *api),
            after=after,
            url=plan.ui_url,
            ready=probes.http_ok(f"{plan.ui_url}/api/v2/version"),
        ),
        *(
            _control_plane(
                plan,
                name,
                _python("airflow", "scheduler", "--skip-serve-logs"),
                after=after,
                ready=database.job_runs("SchedulerJob"),
            )
            for name in names
        ),
        _control_plane(
            plan,
            "dag-processor",
            _python("airflow", "dag-processor"),
            after=(*after, _cloud(plan)),  # the only one that needs a bucket at once
            ready=database.job_runs("DagProcessorJob"),
        ),
        _control_plane(
            plan,
            "triggerer",
            _python("airflow", "triggerer", "--skip-serve-logs"),
            after=after,
            grace_seconds=3.0,  # it may sit in a wait of its own for longer than anybody wants to
            ready=database.job_runs("TriggererJob"),
        ),
    ]


def _gateway(plan: Plan) -> Component:
    words = (f"{worker.name}={worker.region}/{worker.pool}" for worker in workers(plan.options))
    return _control_plane(
        plan,
        "gateway",
        _python("airbridge.control_plane.local.gateway", str(plan.directory.root), *words),
        after=_schema(plan),
        url=plan.gateway_url,
        ready=probes.http_ok(f"{plan.operator_url}/readyz", plan.directory.ca_file),
        stop_stage=_GATEWAY,
    )


def _worker(plan: Plan, worker: WorkerPlan, database: probes.DatabaseProbes) -> Component:
    home = plan.directory.worker(worker.name)
    return Component(
        name=f"worker-{worker.name}",
        argv=_python("airbridge.edge_worker.cli", "run"),
        env=_worker_environment(plan, worker, home),
        log=plan.directory.log(f"worker-{worker.name}"),
        # Not after the gateway: a worker loads Airflow first, and then tries until the gateway answers.
        after=_schema(plan),
        ready=database.worker_beats(worker.name),
        cwd=home,
        stop_stage=_WORKERS_AND_AIRFLOW,
    )


def _worker_environment(plan: Plan, worker: WorkerPlan, home: Path) -> dict[str, str]:
    """Return all that a worker knows: where the gateway is, whom to trust, who it is. Nothing of the control plane."""
    return {
        **environment.base(plan.environ),
        **plan.aws_variables(worker.region, plan.worker_role(worker)),
        "HOME": str(home),
        "AIRFLOW_HOME": str(home / "airflow"),
        "AIRBRIDGE_WORKER_GATEWAY_URL": plan.gateway_url,
        "AIRBRIDGE_WORKER_CA_FILE": str(plan.directory.ca_file),
        "AIRBRIDGE_WORKER_REGION": worker.region,
        "AIRBRIDGE_WORKER_POOL": worker.pool,
        "AIRBRIDGE_WORKER_NAME": worker.name,
        "AIRBRIDGE_WORKER_SLOTS": str(plan.options.slots),
        "AIRBRIDGE_WORKER_STATE_DIR": str(home / "state"),
        "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": str(plan.directory.join_token_file(worker.name)),
        "AIRBRIDGE_WORKER_HIDDEN_PATHS": json.dumps([str(plan.directory.root)]),
        "AIRBRIDGE_WORKER_TASK_ENV": json.dumps(_task_environment(plan, worker)),
        # Two workers on the gateway's own machine cannot swamp it; they need not stay away for long.
        "AIRBRIDGE_WORKER_RETRY_CAP_SECONDS": "2",
        **plan.options.worker_env,
    }


def _task_environment(plan: Plan, worker: WorkerPlan) -> dict[str, str]:
    """Return what DAG code finds in its environment: AWS, as on a host of this region, and the UI's URL, for links."""
    return {
        **plan.aws_variables(worker.region, plan.worker_role(worker)),
        "AWS_ENDPOINT_URL": plan.aws_url,
        "AIRFLOW__API__BASE_URL": plan.ui_url,
    }


def _control_plane(
    plan: Plan,
    name: str,
    argv: tuple[str, ...],
    *,
    after: tuple[str, ...],
    url: str | None = None,
    ready: Probe = lambda _started_at: False,
    once: bool = False,
    grace_seconds: float = 10.0,
    stop_stage: int = _WORKERS_AND_AIRFLOW,
) -> Component:
    return Component(
        name=name,
        argv=argv,
        env={
            **environment.base(plan.environ),
            **plan.aws_variables(plan.options.regions[0].name, plan.service_role(name)),
            **airflow_config.environment(plan.directory),
        },
        log=plan.directory.log(name),
        ready=ready,
        after=after,
        url=url,
        once=once,
        grace_seconds=grace_seconds,
        cwd=plan.directory.root,
        stop_stage=stop_stage,
    )


def _cloud(plan: Plan) -> str:
    return "credentials" if plan.applied else "aws"


def _schema(plan: Plan) -> tuple[str, ...]:
    return ("database",) if plan.migrate else ("postgres",)


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)
