"""Secrets and database role of each service, read from `service_secrets.json`, which the control plane's own table makes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from airbridge.infra.ui_auth import CLIENT_SECRET

_DESCRIPTIONS = {
    "fernet-key": "Encrypts connections and variables in Airflow's database",
    "api-secret-key": "Signs the UI's sessions",
    "jwt-secret": "Signs Airflow's own API tokens inside the control plane",
    "ca-key": "The private key of the authority that issues workers' certificates",
    "ca-certificate": "The certificate of that authority",
    "signing-key": "Signs work items; the scheduler's alone",
    "verify-keys": "The keys that work items are verified with",
    "token-key": "Signs access tokens",
    "old-token-keys": "The keys of access tokens that are accepted until the last token of theirs has ended",
    "publishing-key": "Signs snapshots of DAG code; for the dag-processor and the gateway",
    "publishing-keys": "The keys that snapshots are verified with",
}


def described(*, client_secret: bool) -> dict[str, str]:
    """Return the secrets of a deployment: name, and what it is."""
    passwords = {
        database_secret(name): f"The password of the {name}'s role in the database" for name in services()
    }
    client = {CLIENT_SECRET: "The UI's client at the OpenID Connect issuer"} if client_secret else {}
    return _DESCRIPTIONS | passwords | client


def services() -> Sequence[str]:
    """The services' names."""
    return tuple(_table()["services"])


def of(service: str) -> Sequence[str]:
    """The secrets that a service is given, beside its role's password."""
    return tuple(_table()["services"][service]["secrets"])


def role(service: str) -> str:
    """A service's role in the database."""
    return str(_table()["services"][service]["role"])


def database_secret(service: str) -> str:
    """The name of the secret with the password of a service's role."""
    return f"database-{service}"


def files() -> Mapping[str, str]:
    """The secrets that are read from a file, with its name."""
    return dict(_table()["files"])


def variables() -> Mapping[str, str]:
    """The secrets that are read from an environment variable, with its name."""
    return dict(_table()["variables"])


@cache
def _table() -> Any:
    return json.loads(resources.files("airbridge.infra").joinpath("service_secrets.json").read_text())
