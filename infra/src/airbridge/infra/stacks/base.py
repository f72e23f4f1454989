"""Base of every stack: one state key, one provider held to one account, tags, protection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from airbridge.infra.aspects.defaults import Defaults
from airbridge.infra.cdk import (
    Aspects,
    Construct,
    DataTerraformRemoteStateS3,
    LocalBackend,
    S3Backend,
    TerraformOutput,
    aws,
    literals,
)
from airbridge.infra.cdk import TerraformStack as _TerraformStack
from airbridge.infra.environment import Environment
from airbridge.infra.trust.releases import Releases

AWS_PROVIDER_VERSION = "5.100.0"


@dataclass(frozen=True)
class Deployment:
    """Environment and parameters of this synth."""

    environment: Environment
    allow_destroy: bool = False
    local_state: bool = False
    local_state_file: Path = Path("bootstrap.tfstate")
    first_stack: str = "bootstrap"
    # The Python that Terraform starts for the migrations, as seen from a stack's directory.
    python: str = "python"
    # What tasks may do beyond their own (TOML); without one, nothing.
    policy: str | None = None
    # The signed releases that name the environment's images.
    releases: Releases = field(default_factory=Releases)

    @property
    def protect(self) -> bool:
        """Return whether resources that hold data are protected from destruction."""
        return self.environment.protection.deletion and not self.allow_destroy


class _State(TypedDict):
    """The arguments that S3Backend takes of a state's place."""

    bucket: str
    key: str
    region: str
    encrypt: bool
    kms_key_id: str


class Stack(_TerraformStack):
    """A stack of one environment, in one region."""

    def __init__(self, scope: Construct, name: str, deployment: Deployment, region: str) -> None:
        super().__init__(scope, name)
        self.deployment, self.environment, self.names = (
            deployment,
            deployment.environment,
            deployment.environment.names,
        )
        self.region = region
        self.tags = {
            "airbridge:environment": self.environment.name,
            "airbridge:stack": name,
            "airbridge:managed-by": "terraform",
        }
        aws.provider.AwsProvider(self, "aws", region=region, allowed_account_ids=[self.environment.account])
        # cdktf's package is bound to this version, cdktn's to a later one: whichever writes the stacks, states stay as they are.
        self.add_override("terraform.required_providers.aws.version", AWS_PROVIDER_VERSION)
        boundary = self.names.boundary_arn if name != deployment.first_stack else None
        Aspects.of(self).add(Defaults(self.tags, boundary))
        self._backend(name)

    def _backend(self, name: str) -> None:
        if self.deployment.local_state and name == self.deployment.first_stack:
            # It makes the bucket that the state belongs in; `cdktf deploy --migrate-state` then moves it there.
            LocalBackend(self, path=str(self.deployment.local_state_file))
            return
        S3Backend(self, **self._state_of(name))
        # cdktf's backend has DynamoDB locks only; this is Terraform's own.
        self.add_override("terraform.backend.s3.use_lockfile", True)

    def _state_of(self, name: str) -> _State:
        return {
            "bucket": self.names.state_bucket,
            "key": f"{self.environment.name}/{name}.tfstate",
            "region": self.names.home_region,
            "encrypt": True,
            "kms_key_id": f"arn:aws:kms:{self.names.home_region}:{self.environment.account}:alias/{state_alias(self.environment)}",
        }

    def outputs_of(self, stack: str) -> DataTerraformRemoteStateS3:
        """Another stack's outputs, read from its state, so that either can be deployed alone."""
        state = self._state_of(stack)
        return DataTerraformRemoteStateS3(
            self, stack, bucket=state["bucket"], key=state["key"], region=state["region"]
        )

    def outputs(self, values: Mapping[str, tuple[object, str]]) -> None:
        """Declare outputs: name to value and description."""
        for name, (value, description) in values.items():
            TerraformOutput(self, name, value=literals(value), description=description)


def state_alias(environment: Environment) -> str:
    """The alias of the key that the state is encrypted under."""
    return f"{environment.names.base}-state"
