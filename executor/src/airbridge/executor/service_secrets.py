"""Secrets of each service of the control plane: the one table that local mode, the stacks and the docs follow.

`airbridge.executor.ledger.access.roles` has the rights of each service's database role.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Service(StrEnum):
    """Service of the control plane, by its name in local mode and in ECS."""

    API_SERVER = "api-server"
    SCHEDULER = "scheduler"
    DAG_PROCESSOR = "dag-processor"
    TRIGGERER = "triggerer"
    GATEWAY = "gateway"

    @property
    def role(self) -> str:
        """Name of the service's role in the database."""
        return "airbridge_" + self.value.replace("-", "_")


class Secret(StrEnum):
    """Secret of the control plane, by its name in Secrets Manager."""

    FERNET_KEY = "fernet-key"
    JWT_SECRET = "jwt-secret"  # noqa: S105 - a name
    API_SECRET_KEY = "api-secret-key"  # noqa: S105 - a name
    CA_KEY = "ca-key"
    TOKEN_KEY = "token-key"  # noqa: S105 - a name
    SIGNING_KEY = "signing-key"
    PUBLISHING_KEY = "publishing-key"


_A, _S, _D, _T, _G = Service

# Why a service has a secret. A pair that is not here is not given.
REASONS: Final[Mapping[Secret, Mapping[Service, str]]] = {
    Secret.FERNET_KEY: {
        _A: "shows and edits connections and variables",
        _D: "Airflow compares the kwargs of asset watchers' triggers decrypted",
        _T: "reads the kwargs of triggers, and connections",
        _G: "reads connections for tasks, and writes the kwargs of their triggers",
    },
    Secret.JWT_SECRET: {_A: "signs and verifies the tokens of Airflow's users"},
    Secret.API_SECRET_KEY: {_A: "signs the UI's cookies"},
    Secret.CA_KEY: {_G: "issues the certificates of workers"},
    Secret.TOKEN_KEY: {_G: "signs the access tokens of workers"},
    Secret.SIGNING_KEY: {_S: "signs work items"},
    Secret.PUBLISHING_KEY: {_D: "signs the snapshots that it publishes", _G: "signs pushed snapshots"},
}

# File of `secrets_dir` that holds a secret; the others are Airflow's options.
FILES: Final[Mapping[Secret, str]] = {
    Secret.CA_KEY: "ca.key",
    Secret.TOKEN_KEY: "token.key",
    Secret.SIGNING_KEY: "signing.key",
    Secret.PUBLISHING_KEY: "publish.key",
}
OPTIONS: Final[Mapping[Secret, tuple[str, str]]] = {
    Secret.FERNET_KEY: ("core", "fernet_key"),
    Secret.JWT_SECRET: ("api_auth", "jwt_secret"),
    Secret.API_SECRET_KEY: ("api", "secret_key"),
}

# Files of `secrets_dir` that the gateway reads and that hold no secret.
PUBLIC_FILES: Final = ("ca.crt", "signing.pub.json", "token.pub.json", "publish.pub.json")
EXECUTOR: Final = "airbridge.executor.EdgeExecutor"


@dataclass(frozen=True)
class Choices:
    """Settings of a deployment that need a secret, or a right, more than the table."""

    executors: str = EXECUTOR
    parse_variables: str = ""
    parse_connections: str = ""

    @property
    def other_executors(self) -> bool:
        """True if an executor beside AirBridge's hands tokens for the Execution API to its tasks."""
        names = {name.strip().rpartition(":")[2] for name in self.executors.split(",")}
        return bool(names - {EXECUTOR, ""})


def secrets_of(service: Service, choices: Choices | None = None) -> frozenset[Secret]:
    """Return the secrets that a service is given."""
    given = {secret for secret, services in REASONS.items() if service in services}
    if service is Service.SCHEDULER and choices is not None and choices.other_executors:
        given.add(Secret.JWT_SECRET)
    return frozenset(given)
