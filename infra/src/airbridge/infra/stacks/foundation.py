"""The foundation stack, in the home region: what is filled by hand before any task starts."""

from __future__ import annotations

from dataclasses import dataclass

from airbridge.infra import service_secrets
from airbridge.infra.cdk import Construct, DataTerraformRemoteStateS3
from airbridge.infra.constructs.storage.key import Key, KeyProps
from airbridge.infra.constructs.storage.registry import Registry, RegistryProps
from airbridge.infra.constructs.storage.secrets import Secrets, SecretsProps
from airbridge.infra.stacks.base import Deployment, Stack

NAME = "foundation"


class FoundationStack(Stack):
    """The control plane's key, its secrets without values, and the repositories without images.

    The control plane's first apply starts tasks, which need both: images are pushed and secrets filled in between.
    It depends on the edge regions in one way: where images are copied.
    """

    def __init__(self, scope: Construct, deployment: Deployment) -> None:
        environment = deployment.environment
        super().__init__(scope, NAME, deployment, environment.home_region)
        self.key = self._key()
        self.registry = self._registry()
        self.secrets = self._secrets()
        self.outputs(
            {
                "key_arn": (
                    self.key.arn,
                    "The key of the control plane's database, secrets, logs and images",
                ),
                "repository_arns": (
                    {image: one.arn for image, one in self.registry.repositories.items()},
                    "The repositories, by image",
                ),
                "repository_urls": (
                    {image: one.repository_url for image, one in self.registry.repositories.items()},
                    "Where images are pushed",
                ),
                "secret_arns": (
                    {name: secret.arn for name, secret in self.secrets.secrets.items()},
                    "The secrets, by name; `python -m airbridge.infra.tools.secrets fill` gives them values",
                ),
            }
        )

    def _key(self) -> Key:
        return Key(
            self,
            "key",
            KeyProps(
                alias=f"{self.names.base}-control-plane",
                description="The control plane's database, secrets, logs and images",
                account=self.environment.account,
                services=(f"logs.{self.region}.amazonaws.com", "cloudwatch.amazonaws.com"),
                protect=self.deployment.protect,
            ),
        )

    def _registry(self) -> Registry:
        names = self.environment.images.repositories
        return Registry(
            self,
            "registry",
            RegistryProps(
                repositories={image: self.names.repository(name) for image, name in names.items()},
                prefix=f"{self.names.base}/",
                key_arn=self.key.arn,
                account=self.environment.account,
                copies=self.environment.replicated,
                protect=self.deployment.protect,
            ),
        )

    def _secrets(self) -> Secrets:
        auth = self.environment.control_plane.auth
        return Secrets(
            self,
            "secrets",
            SecretsProps(
                prefix=self.names.base,
                key_arn=self.key.arn,
                descriptions=service_secrets.described(client_secret=bool(auth and auth.client_secret)),
                protect=self.deployment.protect,
            ),
        )


@dataclass(frozen=True)
class Foundation:
    """The foundation's outputs, read from its state."""

    state: DataTerraformRemoteStateS3

    @property
    def key_arn(self) -> str:
        """ARN of the control plane's key."""
        return str(self.state.get_string("key_arn"))

    def repository_arn(self, image: str) -> str:
        """ARN of an image's repository."""
        return str(self.state.get_string(f"repository_arns.{image}"))

    def secret_arns(self, *, client_secret: bool) -> dict[str, str]:
        """ARNs of the secrets by name, each a token of its own: equal ones are found by their text."""
        names = service_secrets.described(client_secret=client_secret)
        return {name: self.state.get_string(f"secret_arns.{name}") for name in names}
