"""Permissions of the pipelines' roles: publish images, plan a change, deploy it."""

from __future__ import annotations

import json
import tomllib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources

from airbridge.infra.constructs.bootstrap import PipelineRole
from airbridge.infra.constructs.iam.policy import Statement
from airbridge.infra.environment import Environment

_FORCED = "not held to names: most of these resources get ids that are not known beforehand; the account is the limit"
_ACCEPTED_READS = ("CKV_AWS_288", "CKV_AWS_355")
_ACCEPTED = (*_ACCEPTED_READS, "CKV_AWS_289", "CKV_AWS_290")
#: GitHub's environment of the job that publishes a release.
PUBLISHING = "release"
#: Longest session of each role, in seconds. A deployment in waves soaks each of them: hours for many regions.
SESSION_SECONDS = {"publish": 3600, "plan": 3600, "deploy": 6 * 3600}
#: Actions without resource-level permissions, of services whose resources are named otherwise.
_WITHOUT_RESOURCE = {
    "ssm": ("DescribeParameters",),
    "sns": ("GetSubscriptionAttributes", "Unsubscribe"),
}
#: Actions on roles that IAM ties to the role's permissions boundary.
_BOUNDED = (
    "AttachRolePolicy",
    "CreateRole",
    "DeleteRolePolicy",
    "DetachRolePolicy",
    "PutRolePermissionsBoundary",
    "PutRolePolicy",
)
#: Actions on what only the bootstrap stack has; a person deploys it.
_OF_BOOTSTRAP = ("CreateOpenIDConnectProvider", "DeleteOpenIDConnectProvider", "GetOpenIDConnectProvider")
_SPECIAL = ("CreateServiceLinkedRole", "PassRole")
#: Services that take a role of ours: instances, tasks, flow logs, lifecycle hooks, enhanced monitoring.
_PASSED_TO = (
    "autoscaling.amazonaws.com",
    "ec2.amazonaws.com",
    "ecs-tasks.amazonaws.com",
    "monitoring.rds.amazonaws.com",
    "vpc-flow-logs.amazonaws.com",
)
#: Services that make a role of their own in the account at their first use.
_LINKED = (
    "autoscaling.amazonaws.com",
    "ecs.amazonaws.com",
    "elasticloadbalancing.amazonaws.com",
    "mrk.kms.amazonaws.com",
    "rds.amazonaws.com",
    "replication.ecr.amazonaws.com",
    "spot.amazonaws.com",
)
#: Services that roles of the platform may use at all.
_RUNTIME_SERVICES = (
    "autoscaling",
    "cloudwatch",
    "ec2",
    "ec2messages",
    "ecr",
    "ecs",
    "kms",
    "logs",
    "rds-db",
    "s3",
    "secretsmanager",
    "sns",
    "sqs",
    "ssm",
    "ssmmessages",
    "sts",
    "xray",
)
_READS = ("BatchGet", "Describe", "Get", "Head", "List")


def roles(environment: Environment, state_bucket_arn: str, state_key_arn: str) -> Mapping[str, PipelineRole]:
    """Return the pipelines' roles by purpose.

    The workflows' jobs run in GitHub's environments `release` (publish), `<environment>-plan` (plan) and `<environment>`
    (deploy), and an OIDC token's subject names the job's environment: each role trusts that one alone.
    """
    actions = _actions()
    reads = {
        service: [name for name in names if name.startswith(_READS)] for service, names in actions.items()
    }
    deployed = environment.pipelines.deployment_environment
    plan = (
        *_readable_state(environment, state_bucket_arn, state_key_arn),
        *_terraform(environment, reads, _ACCEPTED_READS),
    )
    deploy = (
        *_state(environment, state_bucket_arn, state_key_arn),
        *_terraform(environment, {**actions, "iam": []}, _ACCEPTED),
        *_roles_of_services(environment, actions["iam"]),
        Statement(
            sid="NotTheStateBucket",
            effect="Deny",
            actions=("s3:DeleteBucket*", "s3:PutBucket*", "s3:PutLifecycleConfiguration"),
            resources=(state_bucket_arn,),
        ),
    )

    def role(purpose: str, description: str, where: str, statements: Sequence[Statement]) -> PipelineRole:
        return PipelineRole(
            name=environment.names.role(f"pipeline-{purpose}"),
            description=description,
            deployment_environment=where,
            statements=tuple(statements),
            max_session_seconds=SESSION_SECONDS[purpose],
        )

    return {
        "publish": role(
            "publish", "Pushes and copies images, and nothing else", PUBLISHING, _publish(environment)
        ),
        "plan": role("plan", "Reads what is deployed, to plan a change", f"{deployed}-plan", plan),
        "deploy": role("deploy", "Deploys the stacks", deployed, deploy),
    }


def _actions() -> dict[str, list[str]]:
    """Return the actions of a deployment by service: the recorded ones, and those that only AWS requires."""
    package = resources.files("airbridge.infra")
    recorded: dict[str, list[str]] = json.loads(package.joinpath("deploy_actions.json").read_text())
    documented = tomllib.loads(package.joinpath("documented_actions.toml").read_text())
    return {
        service: sorted({*recorded.get(service, ()), *documented.get(service, ())})
        for service in sorted({*recorded, *documented})
    }


def _publish(environment: Environment) -> Sequence[Statement]:
    return (
        Statement(
            sid="Login",
            actions=("ecr:GetAuthorizationToken",),
            resources=("*",),
            forced_by_aws="GetAuthorizationToken takes no resource; the token allows only what this role allows",
        ),
        Statement(
            sid="Push",
            actions=(
                "ecr:BatchCheckLayerAvailability",
                "ecr:BatchGetImage",
                "ecr:CompleteLayerUpload",
                "ecr:CreateRepository",
                "ecr:DescribeImages",
                "ecr:GetDownloadUrlForLayer",
                "ecr:InitiateLayerUpload",
                "ecr:ListImages",
                "ecr:PutImage",
                "ecr:UploadLayerPart",
            ),
            # Of every region: a release is copied to one that came after replication was configured.
            resources=(f"arn:aws:ecr:*:{environment.account}:repository/{environment.names.base}/*",),
        ),
    )


def _readable_state(environment: Environment, bucket_arn: str, key_arn: str) -> Sequence[Statement]:
    """Return the state's read-only statements: code of a pull request runs with them, and plans without a lock."""
    return (
        Statement(
            sid="State", actions=("s3:GetObject",), resources=(f"{bucket_arn}/{environment.name}/*.tfstate",)
        ),
        Statement(sid="ListState", actions=("s3:ListBucket",), resources=(bucket_arn,)),
        Statement(sid="StateKey", actions=("kms:Decrypt",), resources=(key_arn,)),
    )


def _state(environment: Environment, bucket_arn: str, key_arn: str) -> Sequence[Statement]:
    return (
        Statement(
            sid="State",
            actions=("s3:GetObject", "s3:PutObject"),
            resources=(f"{bucket_arn}/{environment.name}/*.tfstate",),
        ),
        Statement(
            sid="Locks",
            actions=("s3:DeleteObject", "s3:GetObject", "s3:PutObject"),
            resources=(f"{bucket_arn}/{environment.name}/*.tflock",),
        ),
        Statement(sid="ListState", actions=("s3:ListBucket",), resources=(bucket_arn,)),
        Statement(sid="StateKey", actions=("kms:Decrypt", "kms:GenerateDataKey"), resources=(key_arn,)),
    )


def _terraform(
    environment: Environment, actions: Mapping[str, Sequence[str]], accepted: Sequence[str]
) -> list[Statement]:
    """Return a statement for each service whose resources can be named, and one for each of the others."""
    named = _resources(environment)
    everywhere: dict[str, list[str]] = defaultdict(list)
    statements = []
    for service, names in sorted(actions.items()):
        for name in names:
            if service not in named or name in _WITHOUT_RESOURCE.get(service, ()):
                everywhere[service].append(f"{service}:{name}")
        full = [f"{service}:{name}" for name in names if f"{service}:{name}" not in everywhere[service]]
        if full:
            statements.append(Statement(sid=_sid(service), actions=full, resources=named[service]))
    for service, full in everywhere.items():
        if full:
            statements.append(
                Statement(
                    sid=_sid(service) + ("Unnamed" if service in named else ""),
                    actions=full,
                    resources=("*",),
                    forced_by_aws=_FORCED,
                    accepted_checks=accepted,
                )
            )
    return statements


def _roles_of_services(environment: Environment, actions: Sequence[str]) -> list[Statement]:
    """Return the deploy role's statements of IAM: it makes bounded roles, passes them to named services, and no more.

    Without the boundary, or without the last statement, it could make or change a role that may do anything.
    """
    base, account = environment.names.base, environment.account
    bounded = [name for name in actions if name in _BOUNDED]
    rest = [name for name in actions if name not in (*_BOUNDED, *_OF_BOOTSTRAP, *_SPECIAL)]
    ours = (
        f"arn:aws:iam::{account}:role/{base}-*",
        f"arn:aws:iam::{account}:instance-profile/{base}-*",
        f"arn:aws:iam::{account}:policy/{base}-*",
    )
    return [
        Statement(sid="TerraformIam", actions=_full("iam", rest), resources=ours),
        Statement(
            sid="TerraformBoundedRoles",
            actions=_full("iam", bounded),
            resources=(ours[0],),
            conditions={"StringEquals": {"iam:PermissionsBoundary": environment.names.boundary_arn}},
        ),
        Statement(
            sid="TerraformPassedRoles",
            actions=("iam:PassRole",),
            resources=(ours[0],),
            conditions={"StringEquals": {"iam:PassedToService": list(_PASSED_TO)}},
        ),
        Statement(
            sid="TerraformServiceLinkedRoles",
            actions=("iam:CreateServiceLinkedRole",),
            resources=(f"arn:aws:iam::{account}:role/aws-service-role/*",),
            conditions={"StringEquals": {"iam:AWSServiceName": list(_LINKED)}},
        ),
        Statement(
            sid="NotTheBootstrap",
            effect="Deny",
            actions=("iam:*",),
            resources=(
                f"arn:aws:iam::{account}:role/{base}-pipeline-*",
                f"arn:aws:iam::{account}:policy/{base}-pipeline-*",
                environment.names.boundary_arn,
                f"arn:aws:iam::{account}:oidc-provider/*",
            ),
        ),
    ]


def boundary(environment: Environment) -> Sequence[Statement]:
    """Return the permissions boundary of every role that the deploy role makes: nothing of IAM or of the account.

    A boundary grants nothing; it caps what the roles' own policies grant.
    """
    services = sorted({*_RUNTIME_SERVICES, *environment.task_services})
    return (
        _BoundaryStatement(
            sid="Services", actions=[f"{service}:*" for service in services], resources=("*",)
        ),
        Statement(
            sid="NotTheState",
            effect="Deny",
            actions=("s3:*",),
            resources=(
                f"arn:aws:s3:::{environment.names.state_bucket}",
                f"arn:aws:s3:::{environment.names.state_bucket}/*",
            ),
        ),
    )


class _BoundaryStatement(Statement):
    """A statement of a permissions boundary may be wide: it caps what other policies grant, and grants nothing."""

    def _require_narrow(self) -> None:
        pass


def _full(service: str, names: Sequence[str]) -> list[str]:
    return [f"{service}:{name}" for name in names]


def _resources(environment: Environment) -> dict[str, tuple[str, ...]]:
    base, account = environment.names.base, environment.account
    return {
        "iam": (
            f"arn:aws:iam::{account}:role/{base}-*",
            f"arn:aws:iam::{account}:instance-profile/{base}-*",
            f"arn:aws:iam::{account}:policy/{base}-*",
            f"arn:aws:iam::{account}:oidc-provider/*",
        ),
        "s3": (f"arn:aws:s3:::{base}-*",),
        # RDS names the secret of a managed master password itself: `rds!db-...`.
        "secretsmanager": (
            f"arn:aws:secretsmanager:*:{account}:secret:{base}/*",
            f"arn:aws:secretsmanager:*:{account}:secret:rds!*",
        ),
        "sns": (f"arn:aws:sns:*:{account}:{base}-*",),
        "sqs": (f"arn:aws:sqs:*:{account}:{base}-*",),
        "ssm": (
            f"arn:aws:ssm:*:{account}:parameter/airbridge/{environment.name}/*",
            # AMIs are public parameters, which have no account.
            "arn:aws:ssm:*::parameter/aws/service/*",
        ),
    }


def _sid(service: str) -> str:
    return "Terraform" + "".join(part.capitalize() for part in service.split("-"))
