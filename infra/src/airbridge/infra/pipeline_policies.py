"""What the pipelines' roles may do: publish images, plan a change, deploy it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib import resources

from airbridge.infra.constructs.policy import Statement
from airbridge.infra.environment import Environment

_FORCED = (
    "these create, or describe, what has no name yet; the services' own tags and the account are the boundary"
)
_ACCEPTED_READS = ("CKV_AWS_288", "CKV_AWS_355")
_ACCEPTED = (*_ACCEPTED_READS, "CKV_AWS_289", "CKV_AWS_290")
_READS = ("BatchGet", "Describe", "Get", "Head", "List")


def roles(
    environment: Environment, state_bucket_arn: str, state_key_arn: str
) -> Mapping[str, tuple[str, Sequence[Statement]]]:
    """Purpose to description and statements."""
    actions = _actions()
    reads = {
        service: [name for name in names if name.startswith(_READS)] for service, names in actions.items()
    }
    state = _state(environment, state_bucket_arn, state_key_arn)
    return {
        "publish": ("Pushes images, and nothing else", _publish(environment)),
        "plan": (
            "Reads what is deployed, to plan a change",
            (*state, *_terraform(environment, reads, _ACCEPTED_READS)),
        ),
        "deploy": ("Deploys the stacks", (*state, *_terraform(environment, actions, _ACCEPTED))),
    }


def _actions() -> dict[str, list[str]]:
    """By service: what Terraform was seen to call in a deploy and a plan, and what changing and destroying take."""
    text = resources.files("airbridge.infra").joinpath("deploy_actions.json").read_text()
    recorded: dict[str, list[str]] = json.loads(text)
    return recorded


def _publish(environment: Environment) -> Sequence[Statement]:
    where = f"{environment.home_region}:{environment.account}"
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
                "ecr:DescribeImages",
                "ecr:GetDownloadUrlForLayer",
                "ecr:InitiateLayerUpload",
                "ecr:PutImage",
                "ecr:UploadLayerPart",
            ),
            resources=(f"arn:aws:ecr:{where}:repository/{environment.names.base}/*",),
        ),
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
    """One statement for each service whose resources can be named, one for the others."""
    named = _resources(environment)
    everywhere: dict[str, list[str]] = defaultdict(list)
    statements = []
    for service, names in sorted(actions.items()):
        if not names:
            continue
        if service in named:
            full = [f"{service}:{name}" for name in names]
            statements.append(Statement(sid=_sid(service), actions=full, resources=named[service]))
        else:
            everywhere[service] = [f"{service}:{name}" for name in names]
    for service, full in everywhere.items():
        statements.append(
            Statement(
                sid=_sid(service),
                actions=full,
                resources=("*",),
                forced_by_aws=_FORCED,
                accepted_checks=accepted,
            )
        )
    return statements


def _resources(environment: Environment) -> dict[str, tuple[str, ...]]:
    base, account = environment.names.base, environment.account
    return {
        "iam": (
            f"arn:aws:iam::{account}:role/{base}-*",
            f"arn:aws:iam::{account}:instance-profile/{base}-*",
            f"arn:aws:iam::{account}:oidc-provider/*",
        ),
        "s3": (f"arn:aws:s3:::{base}-*",),
        "secretsmanager": (f"arn:aws:secretsmanager:*:{account}:secret:{base}/*",),
        "sns": (f"arn:aws:sns:*:{account}:{base}-*",),
        "sqs": (f"arn:aws:sqs:*:{account}:{base}-*",),
    }


def _sid(service: str) -> str:
    return "Terraform" + "".join(part.capitalize() for part in service.split("-"))
