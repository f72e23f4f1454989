"""Plan of a local platform's processes: command lines, environments, order. Pure: starts nothing."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from airbridge.control_plane.local import environment, ports
from airbridge.control_plane.local.keys import Keys
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.process import probes
from airbridge.control_plane.local.process.component import Component, Probe
from airbridge.control_plane.local.process.privileges import postgres_user
from airbridge.control_plane.local.services import (
    airflow_config,
    aws,
    credentials,
    emulator,
    postgres,
    task_environment,
)
from airbridge.control_plane.local.services.postgres import Postgres
from airbridge.control_plane.local.services.terraform import Deployed
from airbridge.executor.service_secrets import Choices, Service

MIGRATION = "database"
MIGRATE = (sys.executable, "-m", "airflow", "db", "migrate")
PORTS = ("postgres", "aws", "credentials", "api-server", "gateway", "operator")

# Variables that only AirBridge reads.
_OWN_VARIABLES = "AIRBRIDGE_"

# Processes that build the environments of DAG code, from the package index.
_BUILDERS = ("dag-processor", "gateway")

# Stop order. The gateway stops after the workers, which report to it until they end.
_WORKERS_AND_AIRFLOW, _GATEWAY, _FOUNDATION = 0, 1, 2


@dataclass(frozen=True)
class Applied:
    """Terraform deployment, and the tokens of its roles."""

    deployed: Deployed
    grants: credentials.Grants


@dataclass(frozen=True)
class Plan:
    """Inputs of the components."""

    options: Options
    directory: StateDir
    keys: Keys
    environ: Mapping[str, str]
    #: True if the database must be migrated to this version's schema.
    migrate: bool
    #: Set if the platform runs on a Terraform deployment instead of its own emulator.
    applied: Applied | None = None

    @property
    def server(self) -> Postgres:
        """Database server."""
        return Postgres(self.directory.postgres, self.keys.ports["postgres"], self.keys.database_password)

    @property
    def resources(self) -> aws.Resources:
        """Queues and buckets of the emulated AWS."""
        return aws.Resources(
            home_region=self.options.regions[0].name, regions=self.options.regions, slots=self.options.slots
        )

    @property
    def ui_url(self) -> str:
        """URL of Airflow's UI."""
        return self._http("api-server")

    @property
    def aws_url(self) -> str:
        """URL of the AWS emulator."""
        return self.applied.deployed.endpoint_url if self.applied else self._http("aws")

    @property
    def gateway_url(self) -> str:
        """URL of the gateway for workers."""
        return f"https://{ports.LOOPBACK}:{self.keys.ports['gateway']}"

    @property
    def operator_url(self) -> str:
        """URL of the gateway for operators and CI."""
        return f"https://{ports.LOOPBACK}:{self.keys.ports['operator']}"

    @property
    def choices(self) -> Choices:
        """The user's settings on which secrets and database rights depend."""
        return airflow_config.choices(self.options.airflow)

    @property
    def dags(self) -> Path:
        """Folder of DAG files."""
        return self.options.dags or self.directory.dags

    def aws_variables(self, region: str, role_arn: str | None) -> dict[str, str]:
        """Return the AWS variables of a process: the credentials of `role_arn`, on a deployment with roles."""
        if self.applied is None:
            return environment.aws_variables(region)
        if role_arn is None:
            return environment.without_aws(region)
        return credentials.variables(
            self.keys.ports["credentials"], self.applied.grants.token(role_arn), region
        )

    def service_role(self, component: str) -> str | None:
        """Return the role of a control plane process; None where it has none."""
        if self.applied is None:
            return None
        return self.applied.deployed.service_roles.get(kind(component))

    def worker_role(self, worker: WorkerPlan) -> str | None:
        """Return the role of a worker; None where there are no roles."""
        return self.applied.deployed.worker_roles[worker.region, worker.pool] if self.applied else None

    def goes_through_gateway(self, worker: WorkerPlan) -> bool:
        """Return whether a worker is in a place without AWS."""
        return any(region.through for region in self.options.regions if region.name == worker.region)

    def _http(self, name: str) -> str:
        return f"http://{ports.LOOPBACK}:{self.keys.ports[name]}"


@dataclass(frozen=True)
class WorkerPlan:
    """Worker whose name is made of region, pool and number."""

    name: str
    region: str
    pool: str


def kind(component: str) -> str:
    """Return what a component is: all schedulers are one service."""
    return Service.SCHEDULER if component.startswith(f"{Service.SCHEDULER}-") else component


def workers(options: Options) -> tuple[WorkerPlan, ...]:
    """Return every worker of the platform."""
    return tuple(
        WorkerPlan(f"{region.name}-{pool}-{number}", region.name, pool)
        for region in options.regions
        for pool in region.pools
        for number in range(1, options.workers_per_region + 1)
    )


def components(plan: Plan) -> list[Component]:
    """Return every process, in display order."""
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
        ready=probes.database_answers(
            plan.server,
            plan.directory.initial_password_file,
            partial(postgres.prepare_roles, plan.server, plan.keys.service_passwords, plan.choices),
        ),
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
            "airbridge.control_plane.local.services.emulator",
            "--port",
            str(plan.keys.ports["aws"]),
            "--resources",
            str(plan.directory.aws_resources_file),
        ),
        env=environment.base(plan.environ),
        log=plan.directory.log("aws"),
        ready=probes.http_ok(plan.aws_url + emulator.READY_PATH),
        url=plan.aws_url,
        stop_signal=signal.SIGKILL,  # it has no state to save
        stop_stage=_FOUNDATION,
    )


def _credentials(plan: Plan) -> Component:
    port = plan.keys.ports["credentials"]
    return Component(
        name="credentials",
        argv=_python(
            "airbridge.control_plane.local.services.credentials",
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
    return _control_plane(plan, MIGRATION, MIGRATE, after=("postgres",), once=True)


def _airflow(plan: Plan, database: probes.DatabaseProbes) -> list[Component]:
    names = ["scheduler", *(f"scheduler-{number}" for number in range(2, plan.options.schedulers + 1))]
    after = _schema(plan)
    return [
        _api_server(plan, after),
        *(
            _control_plane(
                plan,
                name,
                _python("airflow", "scheduler", "--skip-serve-logs"),
                after=after,
                ready=database.job_is_running("SchedulerJob"),
            )
            for name in names
        ),
        _control_plane(
            plan,
            "dag-processor",
            _python("airbridge.control_plane.dag_processing.service"),
            after=(*after, _cloud(plan)),  # the only process that needs a bucket right at its start
            ready=database.job_is_running("DagProcessorJob"),
        ),
        _control_plane(
            plan,
            "triggerer",
            _python("airflow", "triggerer", "--skip-serve-logs"),
            after=after,
            grace_seconds=3.0,  # its event loop may block on a wait for longer than that
            ready=database.job_is_running("TriggererJob"),
        ),
    ]


def _api_server(plan: Plan, after: tuple[str, ...]) -> Component:
    # The Execution API is for the tasks of other executors; AirBridge's reach it through the gateway.
    apps = "all" if plan.choices.other_executors else "core"
    options = ["--apps", apps, "--host", ports.LOOPBACK, "--port", str(plan.keys.ports["api-server"])]
    return _control_plane(
        plan,
        "api-server",
        _python("airflow", "api-server", *options, "--workers", "1"),
        after=after,
        url=plan.ui_url,
        ready=probes.http_ok(f"{plan.ui_url}/api/v2/version"),
    )


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
        # Not after the gateway: a worker loads Airflow first, and then retries until the gateway answers.
        after=_schema(plan),
        ready=database.worker_heartbeat_received(worker.name),
        cwd=home,
        # A variable of the user may be for the interpreter, or for a package that reads it when it is imported.
        preloaded=all(name.startswith(_OWN_VARIABLES) for name in plan.options.worker_env),
        stop_stage=_WORKERS_AND_AIRFLOW,
    )


def _worker_environment(plan: Plan, worker: WorkerPlan, home: Path) -> dict[str, str]:
    """Return the environment of a worker: gateway, CA and its own identity. Nothing of the control plane."""
    return {
        **environment.base(plan.environ),
        **_worker_aws(plan, worker),
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
        # A few workers on the gateway's own machine cannot overload it: retry sooner than the default.
        "AIRBRIDGE_WORKER_RETRY_CAP_SECONDS": "2",
        **plan.options.worker_env,
        # Added to, not replaced: tasks need the emulator's address whatever the user gives them.
        task_environment.VARIABLE: task_environment.merged(
            _task_environment(plan, worker), plan.options.worker_env
        ),
    }


def _worker_aws(plan: Plan, worker: WorkerPlan) -> dict[str, str]:
    """Return the AWS variables of a worker: none in a place without AWS."""
    if plan.goes_through_gateway(worker):
        return {}
    return plan.aws_variables(worker.region, plan.worker_role(worker))


def overridden_task_variables(plan: Plan) -> list[str]:
    """Return the platform's own variables for tasks to which the user has given another value."""
    given = plan.options.worker_env
    found = (
        task_environment.overridden(_task_environment(plan, each), given) for each in workers(plan.options)
    )
    return sorted({name for names in found for name in names})


def _task_environment(plan: Plan, worker: WorkerPlan) -> dict[str, str]:
    """Return the environment of DAG code: AWS, as on a host of this region, the package index, and the UI's URL, for links."""
    aws_of_task = (
        {}
        if plan.goes_through_gateway(worker)
        else {"AWS_ENDPOINT_URL": plan.aws_url, "AWS_REGION": worker.region}
    )
    return {
        **environment.task_packages(plan.environ),
        **_worker_aws(plan, worker),
        **aws_of_task,
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
            **_proxies(plan, name),
            **plan.aws_variables(plan.options.regions[0].name, plan.service_role(name)),
            **airflow_config.environment(plan.directory, kind(name)),
        },
        log=plan.directory.log(name),
        ready=ready,
        after=after,
        url=url,
        once=once,
        grace_seconds=grace_seconds,
        # Not the platform's directory: tasks of the LocalExecutor run in it, and one may delete what it works in.
        cwd=plan.directory.scratch,
        stop_stage=stop_stage,
        preloaded=argv != MIGRATE,
    )


def _proxies(plan: Plan, name: str) -> dict[str, str]:
    """Return the user's proxy for a process that builds the environments of DAG code."""
    if name not in _BUILDERS:
        return {}
    return environment.proxies(plan.environ, [urlsplit(plan.aws_url).hostname or ""])


def _cloud(plan: Plan) -> str:
    return "credentials" if plan.applied else "aws"


def _schema(plan: Plan) -> tuple[str, ...]:
    return (MIGRATION,) if plan.migrate else ("postgres",)


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)
