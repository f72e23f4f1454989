"""One of the control plane's services on Fargate, under a role of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.log_group import log_group
from airbridge.infra.constructs.policy import Statement, assumed_by_service
from airbridge.infra.constructs.role import Role, RoleProps

RUN_DIRECTORY = "/run/airbridge"
_ECS_TASKS = "ecs-tasks.amazonaws.com"


@dataclass(frozen=True)
class Platform:
    """What the services of one control plane share."""

    prefix: str
    region: str
    account: str
    cluster_arn: str
    image: str
    repository_arn: str
    key_arn: str
    subnet_ids: Sequence[str]
    environment: Mapping[str, str]
    secrets: Mapping[str, str]
    log_days: int = 90


@dataclass(frozen=True)
class TaskProps:
    """What one service runs, what it may do, and which secrets it is given.

    `secrets` are environment variables and where ECS reads them. `files` are written to RUN_DIRECTORY before the
    command starts: file name to environment variable.
    """

    name: str
    command: Sequence[str]
    cpu: int = 1024
    memory: int = 2048
    ports: Sequence[int] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    statements: Sequence[Statement] = ()
    health_command: Sequence[str] = ()
    waits_for_migrations: bool = True


@dataclass(frozen=True)
class ServiceProps:
    """How many copies of a task run, and the target groups they join (ARN and port).

    `reads` is what a task reads when it starts and its definition does not show: when it changes, the copies are replaced.
    """

    count: int
    security_group_id: str
    reads: str = ""
    targets: Sequence[tuple[str, int]] = ()
    wait_for: Sequence[Construct] = ()


class Task(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
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
            volume=[module.EcsTaskDefinitionVolume(name="run"), module.EcsTaskDefinitionVolume(name="tmp")],
            container_definitions=json.dumps(self._containers(platform)),
        )

    def _task_role(self, platform: Platform) -> Role:
        return Role(
            self,
            "role",
            RoleProps(
                name=self.family,
                description=f"What the {self.props.name} itself may do",
                trust=(assumed_by_service(_ECS_TASKS, platform.account),),
                statements=self.props.statements,
            ),
        )

    def _execution_role(self, platform: Platform) -> Role:
        sources = {**platform.secrets, **self.props.secrets}.values()
        parameters = sorted(source for source in sources if ":parameter/" in source)
        secrets = sorted({_secret_of(source) for source in sources if source not in parameters})
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
        if parameters:
            statements.append(
                Statement(sid="ReadParameters", actions=("ssm:GetParameters",), resources=parameters)
            )
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

    def _containers(self, platform: Platform) -> list[dict[str, Any]]:
        main = self._container(platform, self.props.name, self._command())
        main["portMappings"] = [
            {"containerPort": port, "hostPort": port, "protocol": "tcp"} for port in self.props.ports
        ]
        if self.props.health_command:
            main["healthCheck"] = {
                "command": ["CMD", *self.props.health_command],
                "interval": 30,
                "timeout": 20,
                "retries": 3,
                "startPeriod": 120,
            }
        if not self.props.waits_for_migrations:
            return [main]
        check = ["airflow", "db", "check-migrations", "--migration-wait-timeout", "600"]
        waiting = {**self._container(platform, "migrations", check), "essential": False}
        main["dependsOn"] = [{"containerName": "migrations", "condition": "SUCCESS"}]
        return [main, waiting]

    def _container(self, platform: Platform, name: str, command: Sequence[str]) -> dict[str, Any]:
        own = name == self.props.name
        secrets = {**platform.secrets, **(self.props.secrets if own else {})}
        return {
            "name": name,
            "image": platform.image,
            "essential": True,
            "command": list(command),
            "readonlyRootFilesystem": True,
            "linuxParameters": {"initProcessEnabled": True},
            "environment": [
                {"name": key, "value": value} for key, value in sorted(platform.environment.items())
            ],
            "secrets": [{"name": key, "valueFrom": source} for key, source in sorted(secrets.items())],
            "mountPoints": [
                {"sourceVolume": "run", "containerPath": RUN_DIRECTORY, "readOnly": False},
                {"sourceVolume": "tmp", "containerPath": "/tmp", "readOnly": False},  # noqa: S108  # a container's own
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

    def _command(self) -> list[str]:
        """The command, after what must be files has been written with mode 0600."""
        if not self.props.files:
            return list(self.props.command)
        writes = [
            f'printf %s "${variable}" > {RUN_DIRECTORY}/{name}' for name, variable in self.props.files.items()
        ]
        return ["sh", "-ec", "; ".join(["umask 077", *writes, 'exec "$@"']), "sh", *self.props.command]


class Service(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
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
            force_new_deployment=True if props.reads else None,
            triggers={"reads": sha256(props.reads.encode()).hexdigest()} if props.reads else None,
            deployment_minimum_healthy_percent=100 if props.count > 1 else 0,
            deployment_maximum_percent=200,
            deployment_circuit_breaker=module.EcsServiceDeploymentCircuitBreaker(enable=True, rollback=True),
            enable_ecs_managed_tags=True,
            propagate_tags="SERVICE",
            health_check_grace_period_seconds=120 if props.targets else None,
            network_configuration=module.EcsServiceNetworkConfiguration(
                subnets=list(platform.subnet_ids),
                security_groups=[props.security_group_id],
                assign_public_ip=False,
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


def _secret_of(source: str) -> str:
    """The secret's ARN of `<arn>:<json key>::`, which is how ECS names one value of a secret."""
    return source.removesuffix(":password::").removesuffix(":username::")
