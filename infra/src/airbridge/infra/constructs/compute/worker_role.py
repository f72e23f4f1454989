"""Roles of one pool: of its workers (queue, snapshots, logs, machine) and of its tasks (the region's data).

They are two because task code must not be able to act as the worker: the worker's role proves an `aws_iam` join, receives
work and writes every task's log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct
from airbridge.infra.constructs.iam.policy import Statement, Trust, assumed_by_service
from airbridge.infra.constructs.iam.role import Role, RoleProps
from airbridge.infra.environment import TaskStatement


@dataclass(frozen=True)
class WorkerRoleProps:
    """The few things that a worker of this pool touches, and the role of its tasks."""

    name: str
    region: str
    account: str
    queue_arn: str
    bundle_bucket_arn: str
    log_bucket_arn: str
    key_arn: str
    repository: str
    group: str
    task_role_arn: str


def worker_role(scope: Construct, id_: str, props: WorkerRoleProps) -> Role:
    """The role that a pool's instances have."""
    return Role(
        scope,
        id_,
        RoleProps(
            name=props.name,
            description="Workers of one pool",
            trust=(assumed_by_service("ec2.amazonaws.com"),),
            statements=(*_work(props), *_machine(props)),
        ),
    )


@dataclass(frozen=True)
class TaskRoleProps:
    """A task role: the role of its worker, or of a site's gateway, which alone may assume it, and prefixes of the region's data."""

    name: str
    holder_arn: str
    data: Sequence[str] = ()
    #: Prefixes that the pool's tasks may write, and read.
    writes: Sequence[str] = ()
    #: What the environment's file allows beyond.
    statements: Sequence[Statement] = ()


def given_statements(given: Iterable[TaskStatement]) -> list[Statement]:
    """Return the statements of an environment file's pool."""
    return [
        Statement(
            sid=f"Pool{index}", actions=each.actions, resources=each.resources, conditions=each.conditions
        )
        for index, each in enumerate(given)
    ]


def task_role(scope: Construct, id_: str, props: TaskRoleProps) -> Role:
    """Create the role whose credentials instances, or the gateway, hand to the tasks of a pool."""
    trust = Trust(principals={"AWS": props.holder_arn}).statement()
    return Role(
        scope,
        id_,
        RoleProps(
            name=props.name,
            description="Tasks of one pool",
            trust=(trust,),
            statements=(*_data(props.data), *_writes(props.writes), *props.statements),
        ),
    )


def _work(props: WorkerRoleProps) -> Iterator[Statement]:
    yield Statement(
        sid="ReceiveWork",
        actions=(
            "sqs:ChangeMessageVisibility",
            "sqs:DeleteMessage",
            "sqs:GetQueueAttributes",
            "sqs:GetQueueUrl",
            "sqs:ReceiveMessage",
        ),
        resources=(props.queue_arn,),
    )
    yield Statement(
        sid="ReadSnapshots",
        actions=("s3:GetObject",),
        resources=(f"{props.bundle_bucket_arn}/bundles/*", f"{props.bundle_bucket_arn}/trust/*"),
    )
    # Without it S3 answers 403 for a snapshot that is still on its way, and the worker would not wait for it.
    yield Statement(
        sid="ListSnapshots",
        actions=("s3:ListBucket",),
        resources=(props.bundle_bucket_arn,),
        conditions={"StringLike": {"s3:prefix": "bundles/*"}},
    )
    yield Statement(
        sid="WriteLogs",
        actions=("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:PutObject"),
        resources=(f"{props.log_bucket_arn}/logs/*",),
    )
    # Signed into URLs to one object each, which tasks use: they have no such permission themselves.
    yield Statement(
        sid="StoreXComs",
        actions=("s3:GetObject", "s3:PutObject"),
        resources=(f"{props.log_bucket_arn}/xcoms/*",),
    )
    yield Statement(sid="AssumeTaskRole", actions=("sts:AssumeRole",), resources=(props.task_role_arn,))
    yield Statement(sid="UseKey", actions=("kms:Decrypt", "kms:GenerateDataKey"), resources=(props.key_arn,))


def _data(prefixes: Sequence[str]) -> Iterator[Statement]:
    """The region's data, to read."""
    for index, prefix in enumerate(prefixes):
        bucket, _, key = prefix.removeprefix("s3://").partition("/")
        under = f"{key.rstrip('/')}/" if key else ""
        yield Statement(
            sid=f"ReadData{index}", actions=("s3:GetObject",), resources=(f"arn:aws:s3:::{bucket}/{under}*",)
        )
        yield Statement(
            sid=f"ListData{index}",
            actions=("s3:ListBucket",),
            resources=(f"arn:aws:s3:::{bucket}",),
            conditions={"StringLike": {"s3:prefix": f"{under}*"}} if under else {},
        )


def _writes(prefixes: Sequence[str]) -> Iterator[Statement]:
    for index, prefix in enumerate(prefixes):
        bucket, _, key = prefix.removeprefix("s3://").partition("/")
        under = f"{key.rstrip('/')}/" if key else ""
        actions = ("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject")
        yield Statement(
            sid=f"WriteData{index}", actions=actions, resources=(f"arn:aws:s3:::{bucket}/{under}*",)
        )


def _machine(props: WorkerRoleProps) -> Iterator[Statement]:
    where = f"{props.region}:{props.account}"
    yield Statement(
        sid="Login",
        actions=("ecr:GetAuthorizationToken",),
        resources=("*",),
        forced_by_aws="GetAuthorizationToken takes no resource; the token allows only what this role allows",
    )
    yield Statement(
        sid="PullImage",
        actions=("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"),
        resources=(f"arn:aws:ecr:{where}:repository/{props.repository}",),
    )
    yield Statement(
        sid="WriteOwnLog",
        actions=("logs:CreateLogStream", "logs:PutLogEvents"),
        resources=(f"arn:aws:logs:{where}:log-group:/airbridge/{props.group}:*",),
    )
    yield Statement(
        sid="Drain",
        actions=(
            "autoscaling:CompleteLifecycleAction",
            "autoscaling:RecordLifecycleActionHeartbeat",
            "autoscaling:SetInstanceHealth",
            "autoscaling:TerminateInstanceInAutoScalingGroup",
        ),
        resources=(f"arn:aws:autoscaling:{where}:autoScalingGroup:*:autoScalingGroupName/{props.group}",),
    )
    yield Statement(
        sid="RegisterInSsm",
        actions=("ssm:UpdateInstanceInformation",),
        resources=(f"arn:aws:ec2:{where}:instance/*",),
    )
    yield Statement(
        sid="SessionManager",
        actions=(
            "ssmmessages:CreateControlChannel",
            "ssmmessages:CreateDataChannel",
            "ssmmessages:OpenControlChannel",
            "ssmmessages:OpenDataChannel",
        ),
        resources=("*",),
        forced_by_aws="the channels of a session have no names beforehand; none of these actions takes a resource",
        accepted_checks=("CKV_AWS_290", "CKV_AWS_355"),
    )
