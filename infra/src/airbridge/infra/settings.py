"""Settings of the commands, read once from the process environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from airbridge.infra.exceptions import InfraError

ENVIRONMENT = "AIRBRIDGE_ENV"
ENVIRONMENTS = "AIRBRIDGE_ENVIRONMENTS"
DESTROY = "AIRBRIDGE_ALLOW_DESTROY"
STATE = "AIRBRIDGE_STATE"


@dataclass(frozen=True)
class Settings:
    """Parameters of one synth."""

    environment: str
    environments: Path = Path("environments")
    allow_destroy: bool = False
    local_state: bool = False

    @property
    def file(self) -> Path:
        """The environment's file."""
        return self.environments / f"{self.environment}.toml"

    @property
    def policy_file(self) -> Path:
        """The policy of the environment, beside the folder of environments; there need not be one."""
        return self.environments.parent / "policies" / f"{self.environment}.toml"

    @property
    def release_keys(self) -> Path:
        """The keys that may sign releases, in the checkout that the folder of environments is in."""
        return self.environments.absolute().parent.parent / "images" / "release-keys.toml"

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Settings:
        """Settings from environment variables; InfraError names the variable that is wrong."""
        environment = variables.get(ENVIRONMENT, "")
        if not environment:
            raise InfraError(f"{ENVIRONMENT} is not set: name one of the files in environments/, as in dev")
        destroy = variables.get(DESTROY, "")
        if destroy not in {"", environment}:
            raise InfraError(
                f"{DESTROY} is {destroy!r}, but {ENVIRONMENT} is {environment!r}: they must agree"
            )
        state = variables.get(STATE, "s3")
        if state not in {"s3", "local"}:
            raise InfraError(f"{STATE} is {state!r}: it is s3, or local for the first deploy of bootstrap")
        return cls(
            environment=environment,
            environments=Path(variables.get(ENVIRONMENTS, "environments")),
            allow_destroy=destroy == environment,
            local_state=state == "local",
        )
