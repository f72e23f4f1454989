"""The control plane's services: which there are, what each runs, what each may do, which secrets each is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airbridge.infra import observability_definitions, service_secrets
from airbridge.infra.cdk import Construct, ITerraformDependable, aws
from airbridge.infra.constructs.compute.migration import Migration, MigrationProps
from airbridge.infra.constructs.compute.service import (
    RUN_DIRECTORY,
    Login,
    Platform,
    Service,
    ServiceProps,
    Task,
    TaskProps,
)
from airbridge.infra.constructs.iam.policy import Statement
from airbridge.infra.constructs.network.balancers import (
    EDGE_PORT,
    OPERATOR_PORT,
    UI_PORT,
    GatewayEntrance,
    Ui,
)
from airbridge.infra.scaling import NAMESPACE
from airbridge.infra.service_secrets import database_secret
from airbridge.infra.ui_auth import CLIENT_SECRET, RULES_FILE, SECRET_FILE

_REGIONS_FILE = "regions.toml"
_POLICY_FILE = "policy.toml"
_SIGN_IN_VARIABLE = "AIRBRIDGE_UI_OIDC_TOML"
# Files of the gateway that hold no secret; the CA's certificate is public in any case.
_PUBLIC_FILES = {
    "ca.crt": "ca-certificate",
    "signing.pub.json": "verify-keys",
    "token.pub.json": "old-token-keys",
    "publish.pub.json": "publishing-keys",
}
_JWT_SECRET = "AIRFLOW__API_AUTH__JWT_SECRET"  # noqa: S105 - a variable's name
_MIGRATE = "airflow db migrate && python -m airbridge.executor.ledger.access.logins"


@dataclass(frozen=True)
class SignIn:
    """Rules of the sign-in to Airflow's UI (TOML), and whether the client has a secret."""

    rules: str
    has_secret: bool


@dataclass(frozen=True)
class ControlPlaneProps:
    """Numbers of copies, security groups, and the region catalogue (TOML)."""

    schedulers: int
    api_servers: int
    gateways: int
    security_group_id: str
    gateway_group_id: str
    regions: str
    #: What each service may do in the edge regions.
    regional: Mapping[str, Sequence[Statement]]
    image_digest: str
    #: CPU units and MiB of each service's tasks.
    sizes: Mapping[str, tuple[int, int]]
    #: Ways out of the network, which tasks need and do not name.
    wait_for: Sequence[ITerraformDependable]
    python: str = "python"
    #: Policy of tasks (TOML).
    policy: str | None = None
    sign_in: SignIn | None = None


class ControlPlane(Construct):
    """api-server, scheduler, dag-processor, triggerer, gateway, and the migrations that gate them.

    `secrets` are the ARNs of the secrets by name.
    """

    def __init__(
        self,
        scope: Construct,
        id_: str,
        platform: Platform,
        *,
        secrets: Mapping[str, str],
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
            listeners=(ui.listener,),
        )
        self.operator = self._operator()
        self._add("scheduler", props.schedulers, migration)
        self._add("dag-processor", 1, migration)
        self._add("triggerer", 1, migration)
        self._add(
            "gateway",
            props.gateways,
            migration,
            ports=(EDGE_PORT, OPERATOR_PORT),
            targets=((entrance.edge_targets.arn, EDGE_PORT), (entrance.operator_targets.arn, OPERATOR_PORT)),
            listeners=entrance.listeners,
        )

    @property
    def services(self) -> list[str]:
        """The services' names in ECS."""
        return [task.family for task in self.tasks.values()]

    def _operator(self) -> Task:
        """A task that does nothing until an operator opens a session in it (`tools.operate`)."""
        return Task(
            self,
            "operator",
            self._platform,
            TaskProps(
                name="operator",
                command=("sleep", "3600"),
                cpu=512,
                memory=1024,
                contents={_REGIONS_FILE: self._props.regions},
                database=self._login("gateway"),
                takes_sessions=True,
            ),
        )

    def _migration(self) -> Migration:
        task = Task(
            self,
            "migrate",
            self._platform,
            TaskProps(
                name="migrate",
                # Then the services' roles get their passwords.
                command=("sh", "-ec", _MIGRATE),
                secrets=self._migration_secrets(),
                waits_for_migrations=False,
            ),
        )
        return Migration(
            self,
            "migration",
            self._platform,
            task,
            MigrationProps(
                self._props.security_group_id,
                trigger=self._props.image_digest,
                wait_for=self._props.wait_for,
                python=self._props.python,
            ),
        )

    def _add(
        self,
        name: str,
        count: int,
        migration: Migration,
        *,
        ports: tuple[int, ...] = (),
        targets: tuple[tuple[str, int], ...] = (),
        listeners: Sequence[ITerraformDependable] = (),
    ) -> None:
        task = self._task(name, ports)
        group = self._props.gateway_group_id if name == "gateway" else self._props.security_group_id
        Service(
            self,
            f"{name}-service",
            self._platform,
            task,
            ServiceProps(
                count=count,
                security_group_id=group,
                targets=targets,
                wait_for=(migration.run, *listeners),
            ),
        )
        self.tasks[name] = task

    def _task(self, name: str, ports: tuple[int, ...]) -> Task:
        files = {file: _variable(secret) for file, secret in self._files(name).items()}
        sign_in = self._props.sign_in if name == "api-server" else None
        cpu, memory = self._props.sizes[name]
        return Task(
            self,
            name,
            self._platform,
            TaskProps(
                name=name,
                command=_COMMANDS[name],
                cpu=cpu,
                memory=memory,
                ports=ports,
                secrets=self._secret_sources(name),
                database=self._login(name),
                # Airflow's Execution API, in process in most services, does not start without a secret of its own.
                generated=() if "jwt-secret" in service_secrets.of(name) else (_JWT_SECRET,),
                environment={_SIGN_IN_VARIABLE: sign_in.rules} if sign_in else {},
                files={**files, **({RULES_FILE: _SIGN_IN_VARIABLE} if sign_in else {})},
                contents=self._contents(name),
                statements=(*_STATEMENTS.get(name, ()), *self._props.regional.get(name, ())),
                health_command=_HEALTH.get(name, ()),
            ),
        )

    def _secret_sources(self, name: str) -> Mapping[str, str]:
        variables = {
            variable: secret
            for secret, variable in service_secrets.variables().items()
            if secret in service_secrets.of(name)
        }
        variables |= {_variable(secret): secret for secret in self._files(name).values()}
        return {variable: self._secrets[secret] for variable, secret in variables.items()}

    def _contents(self, name: str) -> dict[str, str]:
        """Return the region catalogue, and of the gateway, which alone decides by it, the policy."""
        policy = self._props.policy if name == "gateway" else None
        return {_REGIONS_FILE: self._props.regions, **({_POLICY_FILE: policy} if policy else {})}

    def _migration_secrets(self) -> Mapping[str, str]:
        """The owner's password is the platform's; these are the passwords that it gives the services' roles."""
        secrets = [database_secret(name) for name in service_secrets.services()]
        return {_variable(secret): self._secrets[secret] for secret in secrets}

    def _login(self, name: str) -> Login:
        return Login(service_secrets.role(name), self._secrets[database_secret(name)])

    def _files(self, name: str) -> dict[str, str]:
        """Return the secret in each file of a service."""
        found = _files(name)
        if name == "api-server" and self._props.sign_in and self._props.sign_in.has_secret:
            found[SECRET_FILE] = CLIENT_SECRET
        return found


def _files(name: str) -> dict[str, str]:
    found = {
        file: secret for secret, file in service_secrets.files().items() if secret in service_secrets.of(name)
    }
    return found | (_PUBLIC_FILES if name == "gateway" else {})


def cluster(
    scope: Construct, id_: str, name: str, key_arn: str, *, insights: bool = True
) -> aws.ecs_cluster.EcsCluster:
    """An ECS cluster, with Container Insights unless their metrics would cost more than they show.

    Sessions are encrypted, and their output is logged nowhere: the first token is shown in one.
    """
    module, value = aws.ecs_cluster, "enabled" if insights else "disabled"
    return module.EcsCluster(
        scope,
        id_,
        name=name,
        setting=[module.EcsClusterSetting(name="containerInsights", value=value)],
        configuration=module.EcsClusterConfiguration(
            execute_command_configuration=module.EcsClusterConfigurationExecuteCommandConfiguration(
                kms_key_id=key_arn, logging="NONE"
            )
        ),
    )


def settings(
    database_host: str,
    home_region: str,
    worker_images: Sequence[str],
    *,
    trust_domain: str,
    gateway_name: str,
    sandbox: str,
    policy: bool = False,
    bundles: str | None = None,
) -> dict[str, str]:
    """The environment of every service; nothing in it is secret."""
    decided = {"AIRFLOW__AIRBRIDGE__POLICY_FILE": f"{RUN_DIRECTORY}/{_POLICY_FILE}"} if policy else {}
    return decided | {
        # Fargate gives a task an address of its own; security groups limit access to it.
        "AIRFLOW__AIRBRIDGE__GATEWAY_HOST": "0.0.0.0",  # noqa: S104
        "AIRFLOW__AIRBRIDGE__GATEWAY_NAMES": gateway_name,
        "AIRFLOW__AIRBRIDGE__TRUST_DOMAIN": trust_domain,
        "AIRFLOW__AIRBRIDGE__SCALING_NAMESPACE": NAMESPACE,
        # The gateway's log goes to CloudWatch Logs, which makes metrics of these lines.
        "AIRFLOW__AIRBRIDGE__METRICS_NAMESPACE": observability_definitions.namespace(),
        "AIRFLOW__AIRBRIDGE__REGIONS_FILE": f"{RUN_DIRECTORY}/{_REGIONS_FILE}",
        # Fargate's kernel may lack Landlock: code is then refused, unless the environment's file chose otherwise.
        "AIRFLOW__AIRBRIDGE__SANDBOX": sandbox,
        "AIRFLOW__AIRBRIDGE__SECRETS_DIR": RUN_DIRECTORY,
        "AIRFLOW__AIRBRIDGE__WORKER_IMAGES": ",".join(worker_images),
        # uvicorn's supervisor of several kills each that imports Airflow for longer than 5 s, as on a small task; copies scale.
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__CORE__EXECUTOR": "airbridge.executor.EdgeExecutor",
        # User and password come as PGUSER and PGPASSWORD: each service's own role, not the owner, whose password AWS rotates.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"postgresql+psycopg2://{database_host}/airflow?sslmode=require",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": bundles or json.dumps([_PUSHED]),
        "AWS_REGION": home_region,
        "HOME": "/tmp",  # noqa: S108  # the container's own, its root is read-only
    }


# Both ask for the database: a process that has lost it for good is replaced.
_API_SERVER_CHECK = (
    "import json, urllib.request as u; "
    f"state = json.load(u.urlopen('http://127.0.0.1:{UI_PORT}/api/v2/monitor/health', timeout=15)); "
    "assert state['metadatabase']['status'] == 'healthy', state"
)
# Its certificate has the name of the balancer, so the name is not compared.
_GATEWAY_CHECK = (
    "import ssl, urllib.request as u; "
    f"context = ssl.create_default_context(cafile='{RUN_DIRECTORY}/ca.crt'); context.check_hostname = False; "
    f"u.urlopen('https://127.0.0.1:{OPERATOR_PORT}/readyz', timeout=15, context=context)"
)
# DAG code comes from `airbridge dags push`; a deployment with a repository of its own names it here.
_PUSHED = {
    "name": "pushed",
    "classpath": "airbridge.executor.bundles.bundle.AirBridgeBundle",
    "kwargs": {"source": {"kind": "push"}},
}
NAMES = ("api-server", "scheduler", "dag-processor", "triggerer", "gateway")
_COMMANDS = {
    # Without the Execution API: tasks reach it through the gateway alone (ADR 4).
    "api-server": ("airflow", "api-server", "--apps", "core", "--port", str(UI_PORT)),
    "scheduler": ("airflow", "scheduler"),
    "dag-processor": ("airbridge", "dag-processor"),
    "triggerer": ("airflow", "triggerer"),
    "gateway": ("airbridge", "gateway"),
}
_HEALTH = {
    "api-server": ("python", "-c", _API_SERVER_CHECK),
    "gateway": ("python", "-c", _GATEWAY_CHECK),
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
