"""The control plane's services: which there are, what each runs, what each may do, which secrets each is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airbridge.infra import definitions
from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.balancers import EDGE_PORT, OPERATOR_PORT, UI_PORT, GatewayEntrance, Ui
from airbridge.infra.constructs.migration import Migration, MigrationProps
from airbridge.infra.constructs.policy import Statement
from airbridge.infra.constructs.secrets import Secrets
from airbridge.infra.constructs.service import RUN_DIRECTORY, Platform, Service, ServiceProps, Task, TaskProps
from airbridge.infra.scaling import NAMESPACE

# What Secrets Manager keeps: name, and what it is.
SECRETS = {
    "fernet-key": "Encrypts connections and variables in Airflow's database",
    "api-secret-key": "Signs the UI's sessions",
    "jwt-secret": "Signs Airflow's own API tokens inside the control plane",
    "ca-key": "The private key of the authority that issues workers' certificates",
    "ca-certificate": "The certificate of that authority",
    "signing-key": "Signs work items; the scheduler's alone",
    "verify-keys": "The keys that work items are verified with",
    "token-key": "Signs access tokens",
}
_REGIONS_FILE = "regions.toml"
_POLICY_FILE = "policy.toml"
_POLICY_VARIABLE = "AIRBRIDGE_POLICY_TOML"
_CA = {"ca.crt": "ca-certificate", "ca.key": "ca-key"}
_FILES = {
    "scheduler": {"signing.key": "signing-key"},
    "gateway": {**_CA, "signing.pub.json": "verify-keys", "token.key": "token-key"},
}
_SHARED = {
    "AIRFLOW__CORE__FERNET_KEY": "fernet-key",
    "AIRFLOW__API_AUTH__JWT_SECRET": "jwt-secret",
}


@dataclass(frozen=True)
class PolicySource:
    """What tasks may do beyond their own, and the parameter that the gateway reads it from."""

    text: str
    parameter: Construct
    parameter_arn: str


@dataclass(frozen=True)
class ControlPlaneProps:
    """How many of each, the groups they are in, and where the region catalogue is kept."""

    api_servers: int
    gateways: int
    security_group_id: str
    gateway_group_id: str
    regions_parameter_arn: str
    regions_parameter: Construct
    regions: str
    image_digest: str
    python: str = "python"
    policy: PolicySource | None = None


class ControlPlane(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """api-server, scheduler (2), dag-processor, triggerer, gateway, and the migrations that gate them."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        platform: Platform,
        *,
        secrets: Secrets,
        ui: Ui,
        entrance: GatewayEntrance,
        props: ControlPlaneProps,
    ) -> None:
        super().__init__(scope, id_)
        self._platform, self._secrets, self._props = platform, secrets, props
        migration = self._migration()
        self.tasks: dict[str, Task] = {}
        self._add(
            "api-server",
            props.api_servers,
            migration,
            ports=(UI_PORT,),
            targets=((ui.target_group.arn, UI_PORT),),
        )
        self._add("scheduler", 2, migration)
        self._add("dag-processor", 1, migration)
        self._add("triggerer", 1, migration)
        self._add(
            "gateway",
            props.gateways,
            migration,
            ports=(EDGE_PORT, OPERATOR_PORT),
            targets=((entrance.edge_targets.arn, EDGE_PORT), (entrance.operator_targets.arn, OPERATOR_PORT)),
        )

    @property
    def services(self) -> list[str]:
        """The services' names in ECS."""
        return [task.family for task in self.tasks.values()]

    def _migration(self) -> Migration:
        task = Task(
            self,
            "migrate",
            self._platform,
            TaskProps(
                name="migrate",
                command=("airflow", "db", "migrate"),
                secrets=self._secret_sources("migrate"),
                waits_for_migrations=False,
            ),
        )
        return Migration(
            self,
            "migration",
            self._platform,
            task,
            MigrationProps(
                self._props.security_group_id, trigger=self._props.image_digest, python=self._props.python
            ),
        )

    def _add(
        self,
        name: str,
        count: int,
        migration: Migration,
        ports: tuple[int, ...] = (),
        targets: tuple[tuple[str, int], ...] = (),
    ) -> None:
        files = {file: _variable(secret) for file, secret in _FILES.get(name, {}).items()}
        policy = self._policy_of(name)
        task = Task(
            self,
            name,
            self._platform,
            TaskProps(
                name=name,
                command=_COMMANDS[name],
                ports=ports,
                secrets=self._secret_sources(name),
                files={_REGIONS_FILE: "AIRBRIDGE_REGIONS_TOML", **files, **_policy_files(policy)},
                statements=_STATEMENTS.get(name, ()),
                health_command=_HEALTH.get(name, ()),
            ),
        )
        group = self._props.gateway_group_id if name == "gateway" else self._props.security_group_id
        Service(
            self,
            f"{name}-service",
            self._platform,
            task,
            ServiceProps(
                count=count,
                security_group_id=group,
                reads=self._props.regions + (policy.text if policy else ""),
                targets=targets,
                wait_for=(
                    migration.run,
                    self._props.regions_parameter,
                    *([policy.parameter] if policy else []),
                ),
            ),
        )
        self.tasks[name] = task

    def _secret_sources(self, name: str) -> Mapping[str, str]:
        sources = {variable: self._secrets.arn(secret) for variable, secret in _SHARED.items()}
        sources |= {_variable(secret): self._secrets.arn(secret) for secret in _FILES.get(name, {}).values()}
        if name == "api-server":
            sources["AIRFLOW__API__SECRET_KEY"] = self._secrets.arn("api-secret-key")
        if policy := self._policy_of(name):
            sources[_POLICY_VARIABLE] = policy.parameter_arn
        return {**sources, "AIRBRIDGE_REGIONS_TOML": self._props.regions_parameter_arn}

    def _policy_of(self, name: str) -> PolicySource | None:
        """The gateway alone decides by the policy."""
        return self._props.policy if name == "gateway" else None


def _policy_files(policy: PolicySource | None) -> dict[str, str]:
    return {_POLICY_FILE: _POLICY_VARIABLE} if policy else {}


def cluster(scope: Construct, id_: str, name: str) -> Construct:
    """An ECS cluster with container insights."""
    module = aws.ecs_cluster
    return module.EcsCluster(
        scope, id_, name=name, setting=[module.EcsClusterSetting(name="containerInsights", value="enabled")]
    )


def settings(
    database_host: str,
    home_region: str,
    worker_images: Sequence[str],
    *,
    trust_domain: str,
    gateway_name: str,
    policy: bool = False,
) -> dict[str, str]:
    """The environment of every service; nothing in it is secret."""
    decided = {"AIRFLOW__AIRBRIDGE__POLICY_FILE": f"{RUN_DIRECTORY}/{_POLICY_FILE}"} if policy else {}
    return decided | {
        # Fargate gives a task an address of its own; the network's groups say who reaches it.
        "AIRFLOW__AIRBRIDGE__GATEWAY_HOST": "0.0.0.0",  # noqa: S104
        "AIRFLOW__AIRBRIDGE__GATEWAY_NAMES": gateway_name,
        "AIRFLOW__AIRBRIDGE__TRUST_DOMAIN": trust_domain,
        "AIRFLOW__AIRBRIDGE__SCALING_NAMESPACE": NAMESPACE,
        # The gateway's log goes to CloudWatch Logs, which makes metrics of these lines.
        "AIRFLOW__AIRBRIDGE__METRICS_NAMESPACE": definitions.namespace(),
        "AIRFLOW__AIRBRIDGE__REGIONS_FILE": f"{RUN_DIRECTORY}/{_REGIONS_FILE}",
        "AIRFLOW__AIRBRIDGE__SECRETS_DIR": RUN_DIRECTORY,
        "AIRFLOW__AIRBRIDGE__WORKER_IMAGES": ",".join(worker_images),
        "AIRFLOW__CORE__EXECUTOR": "airbridge.executor.EdgeExecutor",
        # User and password come as PGUSER and PGPASSWORD, from the secret that AWS rotates.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database_host}/airflow?sslmode=require",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([_PUSHED]),
        "AWS_REGION": home_region,
        "HOME": "/tmp",  # noqa: S108  # the container's own, its root is read-only
    }


# DAG code comes from `airbridge dags push`; a deployment with a repository of its own names it here.
_PUSHED = {
    "name": "pushed",
    "classpath": "airbridge.executor.bundle.AirBridgeBundle",
    "kwargs": {"source": {"kind": "push"}},
}
_COMMANDS = {
    "api-server": ("airflow", "api-server", "--port", str(UI_PORT)),
    "scheduler": ("airflow", "scheduler"),
    "dag-processor": ("airflow", "dag-processor"),
    "triggerer": ("airflow", "triggerer"),
    "gateway": ("airbridge", "gateway"),
}
_HEALTH = {
    "scheduler": ("airflow", "jobs", "check", "--job-type", "SchedulerJob", "--local"),
    "dag-processor": ("airflow", "jobs", "check", "--job-type", "DagProcessorJob", "--local"),
    "triggerer": ("airflow", "jobs", "check", "--job-type", "TriggererJob", "--local"),
}
_STATEMENTS = {
    "scheduler": (
        Statement(
            sid="PublishBacklog",
            actions=("cloudwatch:PutMetricData",),
            resources=("*",),
            conditions={"StringEquals": {"cloudwatch:namespace": NAMESPACE}},
            forced_by_aws="PutMetricData takes no resource; the condition holds it to one namespace",
        ),
    ),
}


def _variable(secret: str) -> str:
    return f"AIRBRIDGE_SECRET_{secret.upper().replace('-', '_')}"
