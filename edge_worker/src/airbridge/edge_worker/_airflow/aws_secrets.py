"""Secrets backend of a pool: AWS Secrets Manager in the region, without a provider package.

``airflow.providers.amazon``'s backend takes the same names of secrets, where an image has it.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from airflow.secrets import BaseSecretsBackend


class SecretsManager(BaseSecretsBackend):  # type: ignore[misc] # Airflow publishes no types
    """Connections and variables as secrets named ``<prefix>/<id>``: a URI or JSON for a connection, text for a variable."""

    def __init__(
        self,
        connections_prefix: str | None = "airflow/connections",
        variables_prefix: str | None = "airflow/variables",
        region_name: str | None = None,
        endpoint_url: str | None = None,
    ) -> None:
        super().__init__()
        self._prefixes = {"connections": connections_prefix, "variables": variables_prefix}
        self._place = {"region_name": region_name, "endpoint_url": endpoint_url}

    def get_conn_value(self, conn_id: str) -> str | None:
        """Return a connection's URI or JSON, or None."""
        return self._value("connections", conn_id)

    def get_variable(self, key: str) -> str | None:
        """Return a variable's text, or None."""
        return self._value("variables", key)

    def _value(self, kind: str, name: str) -> str | None:
        prefix = self._prefixes[kind]
        if prefix is None:
            return None
        client = self._client
        try:
            value: str | None = client.get_secret_value(SecretId=f"{prefix}/{name}").get("SecretString")
        except client.exceptions.ResourceNotFoundException:
            return None
        return value

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        # The supervisor answers nothing else meanwhile.
        bounds = Config(
            connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3}
        )
        given = {name: value for name, value in self._place.items() if value is not None}
        return boto3.session.Session().client("secretsmanager", config=bounds, **given)
