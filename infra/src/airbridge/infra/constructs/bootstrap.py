"""Bootstrap: the bucket of Terraform's state and the roles of the pipelines, which must exist before anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.checks import accept
from airbridge.infra.constructs.iam.policy import Statement, Trust, policy_document
from airbridge.infra.constructs.iam.role import Role, RoleProps
from airbridge.infra.constructs.storage.bucket import BucketProps, PrivateBucket
from airbridge.infra.constructs.storage.key import Key, KeyProps

ISSUER = "token.actions.githubusercontent.com"


@dataclass(frozen=True)
class StateProps:
    """The state's bucket and key."""

    bucket: str
    alias: str
    account: str
    protect: bool = True


class State(Construct):
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
                why_no_copy="it describes the home region and is versioned: with that region, what it describes is lost too",
                protect=props.protect,
            ),
        )


@dataclass(frozen=True)
class PipelineProps:
    """Repository of the pipelines, their roles by purpose, and the boundary of the roles that they make."""

    repository: str
    roles: Mapping[str, PipelineRole]
    boundary: str
    boundary_statements: Sequence[Statement]
    #: ARN of a provider that the account has already; None makes it.
    provider_arn: str | None = None


@dataclass(frozen=True)
class PipelineRole:
    """A role of the pipelines; `deployment_environment` is GitHub's environment whose jobs may assume it."""

    name: str
    description: str
    deployment_environment: str
    statements: tuple[Statement, ...]
    max_session_seconds: int


class Pipelines(Construct):
    """Trust in GitHub's OIDC provider, narrowed to one repository and, for each role, one deployment environment."""

    def __init__(self, scope: Construct, id_: str, props: PipelineProps) -> None:
        super().__init__(scope, id_)
        provider_arn = props.provider_arn or self._provider()
        boundary = aws.iam_policy.IamPolicy(
            self, "boundary", name=props.boundary, policy=policy_document(props.boundary_statements)
        )
        for check in (
            "CKV_AWS_287",
            "CKV_AWS_288",
            "CKV_AWS_289",
            "CKV_AWS_290",
            "CKV_AWS_355",
            "CKV_AWS_286",
        ):
            accept(
                boundary, check, "a permissions boundary caps what other policies grant, and grants nothing"
            )
        self.roles = {
            purpose: Role(
                self,
                purpose,
                RoleProps(
                    name=role.name,
                    description=role.description,
                    trust=(_trust(provider_arn, props.repository, role.deployment_environment),),
                    statements=role.statements,
                    max_session_seconds=role.max_session_seconds,
                    managed=True,
                ),
            )
            for purpose, role in props.roles.items()
        }

    def _provider(self) -> str:
        made = aws.iam_openid_connect_provider.IamOpenidConnectProvider(
            self, "provider", url=f"https://{ISSUER}", client_id_list=["sts.amazonaws.com"]
        )
        return str(made.arn)


def _trust(provider_arn: str, repository: str, deployment_environment: str) -> Statement:
    subject = f"repo:{repository}:environment:{deployment_environment}"
    return Trust(
        action="sts:AssumeRoleWithWebIdentity",
        principals={"Federated": provider_arn},
        conditions={"StringEquals": {f"{ISSUER}:aud": "sts.amazonaws.com", f"{ISSUER}:sub": subject}},
    ).statement()
