"""What must exist before anything else: where Terraform keeps its state, and the pipelines' way in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.bucket import BucketProps, PrivateBucket
from airbridge.infra.constructs.key import Key, KeyProps
from airbridge.infra.constructs.policy import Statement, Trust
from airbridge.infra.constructs.role import Role, RoleProps

ISSUER = "token.actions.githubusercontent.com"


@dataclass(frozen=True)
class StateProps:
    """The state's bucket and key."""

    bucket: str
    alias: str
    account: str
    protect: bool = True


class State(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """The bucket that keeps Terraform's state, every version of it for a year, under a key of its own."""

    def __init__(self, scope: Construct, id_: str, props: StateProps) -> None:
        super().__init__(scope, id_)
        self.key = Key(
            self,
            "key",
            KeyProps(
                alias=props.alias,
                description="Terraform's state",
                account=props.account,
                protect=props.protect,
            ),
        )
        self.bucket = PrivateBucket(
            self,
            "bucket",
            BucketProps(
                name=props.bucket,
                key_arn=self.key.arn,
                expire_days=None,
                noncurrent_days=365,
                protect=props.protect,
            ),
        )


@dataclass(frozen=True)
class PipelineProps:
    """Which repository's jobs, in which of its deployment environments, may take which roles."""

    repository: str
    deployment_environment: str
    roles: Mapping[str, PipelineRole]


@dataclass(frozen=True)
class PipelineRole:
    """A role of the pipelines."""

    name: str
    description: str
    statements: tuple[Statement, ...]


class Pipelines(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """Trust in GitHub's OIDC provider, narrowed to one repository and one deployment environment."""

    def __init__(self, scope: Construct, id_: str, props: PipelineProps) -> None:
        super().__init__(scope, id_)
        provider = aws.iam_openid_connect_provider.IamOpenidConnectProvider(
            self, "provider", url=f"https://{ISSUER}", client_id_list=["sts.amazonaws.com"]
        )
        subject = f"repo:{props.repository}:environment:{props.deployment_environment}"
        trust = Trust(
            action="sts:AssumeRoleWithWebIdentity",
            principals={"Federated": provider.arn},
            conditions={"StringEquals": {f"{ISSUER}:aud": "sts.amazonaws.com", f"{ISSUER}:sub": subject}},
        ).statement()
        self.roles = {
            purpose: Role(
                self,
                purpose,
                RoleProps(
                    name=role.name, description=role.description, trust=(trust,), statements=role.statements
                ),
            )
            for purpose, role in props.roles.items()
        }
