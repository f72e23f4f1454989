"""A customer-managed KMS key with an alias, rotated every year."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, TerraformResourceLifecycle, aws
from airbridge.infra.constructs.iam.policy import Statement, policy_document

USE = (
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)
_ADMINISTER = (
    "kms:CancelKeyDeletion",
    "kms:CreateAlias",
    "kms:CreateGrant",
    "kms:DeleteAlias",
    "kms:DisableKey",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListAliases",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListResourceTags",
    "kms:PutKeyPolicy",
    "kms:RetireGrant",
    "kms:RevokeGrant",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateAlias",
    "kms:UpdateKeyDescription",
)


@dataclass(frozen=True)
class KeyProps:
    """A key's alias, the account whose IAM policies govern it, and the AWS services that may use it."""

    alias: str
    description: str
    account: str
    services: Sequence[str] = ()
    protect: bool = True


class Key(Construct):
    """A key that the account's IAM policies govern, so that each role's own policy grants its use."""

    def __init__(self, scope: Construct, id_: str, props: KeyProps) -> None:
        super().__init__(scope, id_)
        self.key = aws.kms_key.KmsKey(
            self,
            "key",
            description=props.description,
            enable_key_rotation=True,
            deletion_window_in_days=30 if props.protect else 7,
            policy=policy_document(_key_policy(props)),
            lifecycle=TerraformResourceLifecycle(prevent_destroy=props.protect),
        )
        aws.kms_alias.KmsAlias(self, "alias", name=f"alias/{props.alias}", target_key_id=self.key.key_id)

    @property
    def arn(self) -> str:
        """The key's ARN."""
        return str(self.key.arn)


def _key_policy(props: KeyProps) -> list[Statement]:
    statements = [
        Statement(
            sid="AccountGoverns",
            actions=(*_ADMINISTER, *USE),
            resources=("*",),
            principals={"AWS": f"arn:aws:iam::{props.account}:root"},
        )
    ]
    return statements + [_service_uses(service, props.account) for service in props.services]


def _service_uses(service: str, account: str) -> Statement:
    return Statement(
        sid="Use" + "".join(part.capitalize() for part in service.split(".", maxsplit=1)[0].split("-")),
        actions=("kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey"),
        resources=("*",),
        principals={"Service": service},
        conditions=_for_this_account(service, account),
    )


def _for_this_account(service: str, account: str) -> dict[str, dict[str, str]]:
    if service.startswith("logs."):
        region = service.split(".")[1]
        arn = f"arn:aws:logs:{region}:{account}:log-group:*"
        return {"ArnLike": {"kms:EncryptionContext:aws:logs:arn": arn}}
    return {"StringEquals": {"aws:SourceAccount": account}}
