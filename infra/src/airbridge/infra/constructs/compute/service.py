"""One of the control plane's services on Fargate, under a role of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airbridge.infra import packing
from airbridge.infra.cdk import Construct, ITerraformDependable, aws, literal
from airbridge.infra.constructs.iam.policy import Statement, assumed_by_service
from airbridge.infra.constructs.iam.role import Role, RoleProps
from airbridge.infra.constructs.monitoring.log_group import log_group
from airbridge.infra.exceptions import InfraError

RUN_DIRECTORY = "/run/airbridge"
_STEADY = "30m"
_ECS_TASKS = "ecs-tasks.amazonaws.com"
_VOLUMES = {"run": RUN_DIRECTORY, "tmp": "/tmp"}  # noqa: S108  # a container's own
# Of the agent of ECS Exec, which is root: under a read-only root it needs them to be volumes. The three folders are those that
# users name in https://github.com/aws/containers-roadmap/issues/1359; AWS's guide calls read-only roots unsupported. Not tried on AWS.
_SESSION_VOLUMES = {
    "session-agent": "/managed-agents",
    "session": "/var/lib/amazon",
    "session-log": "/var/log/amazon",
}


@dataclass(frozen=True)
class Login:
    """Role in the database, and the ARN of the secret with its password."""

    role: str
    secret_arn: str


@dataclass(frozen=True)
class Platform:
    """Properties shared by the services of one control plane."""

    prefix: str
    region: str
    account: str
    cluster_arn: str
    image: str
    repository_arn: str
    key_arn: str
    subnet_ids: Sequence[str]
    environment: Mapping[str, str]
    #: User and password of the database's owner: of a task that has no login of its own.
    owner: Mapping[str, str]
    log_days: int = 90
    #: Tasks have public addresses, in a network without NAT.
    public_addresses: bool = False


@dataclass(frozen=True)
class TaskProps:
    """Properties of one service: command, permissions and secrets.

    `secrets` are environment variables and where ECS reads them. `files` are written to RUN_DIRECTORY before the
    command starts: file name to environment variable. `contents` are files whose text the definition has in itself, by name: none is
    secret, and each revision of the definition keeps its own.
    """

    name: str
    command: Sequence[str]
    cpu: int = 1024
    memory: int = 2048
    ports: Sequence[int] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    #: Environment of this service beside the platform's; nothing in it is secret.
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)
    #: Environment variables that get a random value at each start.
    generated: Sequence[str] = ()
    database: Login | None = None
    statements: Sequence[Statement] = ()
    health_command: Sequence[str] = ()
    waits_for_migrations: bool = True
    #: A session can be opened in the task (ECS Exec).
    takes_sessions: bool = False


@dataclass(frozen=True)
class ServiceProps:
    """Properties of a task's copies: their number, and the target groups that they join (ARN and port)."""

    count: int
    security_group_id: str
    targets: Sequence[tuple[str, int]] = ()
    wait_for: Sequence[ITerraformDependable] = ()


class Task(Construct):
    """A task definition, its log group, and two roles: ECS's, to start it, and its own."""

    def __init__(self, scope: Construct, id_: str, platform: Platform, props: TaskProps) -> None:
        super().__init__(scope, id_)
        self.props = props
        self.family = f"{platform.prefix}-{props.name}"
        self.log = log_group(self, "log", f"/airbridge/{self.family}", platform.key_arn, platform.log_days)
        self.role = self._task_role(platform)
        starter = self._execution_role(platform)
        module = aws.ecs_task_definition
        self.definition = module.EcsTaskDefinition(
            self,
            "definition",
            family=self.family,
            requires_compatibilities=["FARGATE"],
            network_mode="awsvpc",
            cpu=str(props.cpu),
            memory=str(props.memory),
            execution_role_arn=starter.arn,
            task_role_arn=self.role.arn,
            runtime_platform=module.EcsTaskDefinitionRuntimePlatform(
                cpu_architecture="ARM64", operating_system_family="LINUX"
            ),
            volume=[module.EcsTaskDefinitionVolume(name=name) for name in self._volumes],
            container_definitions=self._definitions(platform),
            # ECS starts no task of a revision that is deregistered, and a failed deployment goes back to the one before.
            skip_destroy=True,
            # Whoever starts the task names the definition: by then its roles may pull, read and log.
            depends_on=[*starter.policies, *self.role.policies],
        )

    @property
    def _volumes(self) -> dict[str, str]:
        """Return the folders that can be written, by the names of their volumes."""
        return _VOLUMES | (_SESSION_VOLUMES if self.props.takes_sessions else {})

    def _task_role(self, platform: Platform) -> Role:
        return Role(
            self,
            "role",
            RoleProps(
                name=self.family,
                description=f"What the {self.props.name} itself may do",
                trust=(assumed_by_service(_ECS_TASKS, platform.account),),
                statements=(
                    *self.props.statements,
                    *(_session(platform) if self.props.takes_sessions else ()),
                ),
            ),
        )

    def _execution_role(self, platform: Platform) -> Role:
        sources = {**self._database_secrets(platform), **self.props.secrets}.values()
        # In the order of the variables: by their text, tokens of Terraform would change places with their numbers.
        secrets = list(dict.fromkeys(map(_secret_of, sources)))
        statements = [
            Statement(
                sid="Login",
                actions=("ecr:GetAuthorizationToken",),
                resources=("*",),
                forced_by_aws="GetAuthorizationToken takes no resource; the token allows only what this role allows",
            ),
            Statement(
                sid="PullImage",
                actions=(
                    "ecr:BatchCheckLayerAvailability",
                    "ecr:BatchGetImage",
                    "ecr:GetDownloadUrlForLayer",
                ),
                resources=(platform.repository_arn,),
            ),
            Statement(
                sid="WriteLog",
                actions=("logs:CreateLogStream", "logs:PutLogEvents"),
                resources=(f"{self.log.arn}:*",),
            ),
            Statement(sid="ReadSecrets", actions=("secretsmanager:GetSecretValue",), resources=secrets),
            Statement(sid="OpenSecrets", actions=("kms:Decrypt",), resources=(platform.key_arn,)),
        ]
        return Role(
            self,
            "starter",
            RoleProps(
                name=f"{self.family}-start",
                description=f"What ECS needs to start the {self.props.name}",
                trust=(assumed_by_service(_ECS_TASKS, platform.account),),
                statements=statements,
            ),
        )

    def _definitions(self, platform: Platform) -> str:
        """Return the containers as JSON; InfraError if ECS would refuse them for their size."""
        text = literal(json.dumps(self._containers(platform)))
        if (size := len(text.encode())) > packing.DEFINITION_BYTES:
            raise InfraError(
                f"{self.family}: its task definition has {size} bytes, and ECS takes {packing.DEFINITION_BYTES}: "
                f"shorten {', '.join(sorted(self.props.contents)) or 'its environment'}"
            )
        return text

    def _containers(self, platform: Platform) -> list[dict[str, Any]]:
        main = self._container(platform, self.props.name, self._command())
        main["portMappings"] = [
            {"containerPort": port, "hostPort": port, "protocol": "tcp"} for port in self.props.ports
        ]
        if self.props.health_command:
            # Airflow's own checks take about 4 s of a CPU each: half of the smallest task, if asked twice a minute.
            small = self.props.cpu < 1024
            main["healthCheck"] = {
                "command": ["CMD", *self.props.health_command],
                "interval": 120 if small else 30,
                "timeout": 60 if small else 20,
                "retries": 3,
                "startPeriod": 300 if small else 120,
            }
        if not self.props.waits_for_migrations:
            return [main]
        check = ["airflow", "db", "check-migrations", "--migration-wait-timeout", "600"]
        waiting = {**self._container(platform, "migrations", check), "essential": False}
        main["dependsOn"] = [{"containerName": "migrations", "condition": "SUCCESS"}]
        return [main, waiting]

    def _container(self, platform: Platform, name: str, command: Sequence[str]) -> dict[str, Any]:
        own = name == self.props.name
        secrets = {**self._database_secrets(platform), **(self.props.secrets if own else {})}
        login = {"PGUSER": self.props.database.role} if self.props.database else {}
        more = {**login, **({**self.props.environment, **self._packed} if own else {})}
        return {
            "name": name,
            "image": platform.image,
            "essential": True,
            "command": list(command),
            "readonlyRootFilesystem": True,
            "linuxParameters": {"initProcessEnabled": True},
            "environment": [
                {"name": key, "value": value}
                for key, value in sorted({**platform.environment, **more}.items())
            ],
            "secrets": [{"name": key, "valueFrom": source} for key, source in sorted(secrets.items())],
            "mountPoints": [
                {"sourceVolume": volume, "containerPath": path, "readOnly": False}
                for volume, path in (self._volumes if own else _VOLUMES).items()
            ],
            "logConfiguration": {
                "logDriver": "awslogs",
                "options": {
                    "awslogs-group": f"/airbridge/{self.family}",
                    "awslogs-region": platform.region,
                    "awslogs-stream-prefix": name,
                },
            },
        }

    def _database_secrets(self, platform: Platform) -> Mapping[str, str]:
        if self.props.database is None:
            return platform.owner
        return {"PGPASSWORD": self.props.database.secret_arn}

    @property
    def _packed(self) -> dict[str, str]:
        return {packing.variable(name): packing.pack(text) for name, text in self.props.contents.items()}

    def _command(self) -> list[str]:
        """The command, after what must be files has been written with mode 0600."""
        if not self.props.files and not self.props.contents and not self.props.generated:
            return list(self.props.command)
        random = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        exports = [f'{variable}="$({random})"; export {variable}' for variable in self.props.generated]
        writes = [packing.command(name, f"{RUN_DIRECTORY}/{name}") for name in self.props.contents]
        writes += [
            f'printf %s "${variable}" > {RUN_DIRECTORY}/{name}' for name, variable in self.props.files.items()
        ]
        return [
            "sh",
            "-ec",
            "; ".join(["umask 077", *writes, *exports, 'exec "$@"']),
            "sh",
            *self.props.command,
        ]


class Service(Construct):
    """Copies of a task, kept running, rolled over one by one and rolled back by themselves if they fail."""

    def __init__(
        self, scope: Construct, id_: str, platform: Platform, task: Task, props: ServiceProps
    ) -> None:
        super().__init__(scope, id_)
        module = aws.ecs_service
        self.service = module.EcsService(
            self,
            "service",
            name=task.family,
            cluster=platform.cluster_arn,
            task_definition=task.definition.arn,
            desired_count=props.count,
            launch_type="FARGATE",
            platform_version="LATEST",
            deployment_minimum_healthy_percent=100 if props.count > 1 else 0,
            deployment_maximum_percent=200,
            deployment_circuit_breaker=module.EcsServiceDeploymentCircuitBreaker(enable=True, rollback=True),
            wait_for_steady_state=True,
            # The longest of the waits before it: ten minutes for migrations, then five of start, twice if rolled back.
            timeouts=module.EcsServiceTimeouts(create=_STEADY, update=_STEADY),
            enable_ecs_managed_tags=True,
            propagate_tags="SERVICE",
            health_check_grace_period_seconds=120 if props.targets else None,
            network_configuration=module.EcsServiceNetworkConfiguration(
                subnets=list(platform.subnet_ids),
                security_groups=[props.security_group_id],
                assign_public_ip=platform.public_addresses,
            ),
            load_balancer=[
                module.EcsServiceLoadBalancer(
                    target_group_arn=arn, container_name=task.props.name, container_port=port
                )
                for arn, port in props.targets
            ]
            or None,
            depends_on=list(props.wait_for) or None,
        )


def _session(platform: Platform) -> tuple[Statement, ...]:
    return (
        Statement(
            sid="TakeSessions",
            actions=(
                "ssmmessages:CreateControlChannel",
                "ssmmessages:CreateDataChannel",
                "ssmmessages:OpenControlChannel",
                "ssmmessages:OpenDataChannel",
            ),
            resources=("*",),
            forced_by_aws="the channels of a session have no names beforehand; the actions take no resource",
        ),
        Statement(sid="DecryptSessions", actions=("kms:Decrypt",), resources=(platform.key_arn,)),
    )


def _secret_of(source: str) -> str:
    """The secret's ARN of `<arn>:<json key>::`, which is how ECS names one value of a secret."""
    return source.removesuffix(":password::").removesuffix(":username::")
