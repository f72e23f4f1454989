"""The control plane's secrets: where they are kept, under which key. Their values never pass through Terraform."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, TerraformResourceLifecycle, aws
from airbridge.infra.constructs.checks import accept


@dataclass(frozen=True)
class SecretsProps:
    """A prefix for the names, and for each secret what it is."""

    prefix: str
    key_arn: str
    descriptions: Mapping[str, str]
    recovery_days: int = 30
    protect: bool = True


class Secrets(Construct):
    """Secrets Manager secrets without values; `python -m airbridge.infra.tools.secrets` fills the empty ones."""

    def __init__(self, scope: Construct, id_: str, props: SecretsProps) -> None:
        super().__init__(scope, id_)
        self.secrets = {name: self._secret(name, text, props) for name, text in props.descriptions.items()}

    def arn(self, name: str) -> str:
        """A secret's ARN."""
        return str(self.secrets[name].arn)

    def _secret(
        self, name: str, description: str, props: SecretsProps
    ) -> aws.secretsmanager_secret.SecretsmanagerSecret:
        secret = aws.secretsmanager_secret.SecretsmanagerSecret(
            self,
            name,
            name=f"{props.prefix}/{name}",
            description=description,
            kms_key_id=props.key_arn,
            recovery_window_in_days=props.recovery_days if props.protect else 0,
            lifecycle=TerraformResourceLifecycle(prevent_destroy=props.protect),
        )
        accept(
            secret,
            "CKV2_AWS_57",
            "rotated by an operator, with an overlap that the platform must see through (docs/how-to/rotate-everything.md)",
        )
        return secret
