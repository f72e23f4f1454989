"""Fills the control plane's empty secrets, and publishes the CA's certificate to every region.

    python -m airbridge.infra.secrets --environment dev --directory secrets/

`directory` is what `airbridge init` made: ca.crt, ca.key, signing.key, signing.pub.json, token.key. Fernet key, session
key and JWT secret are generated. A secret that has a value keeps it. Values never pass through Terraform.
"""

from __future__ import annotations

import argparse
import base64
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3

from airbridge.infra import environment as environments
from airbridge.infra.exceptions import InfraError

CERTIFICATE_KEY = "trust/ca.crt"
_FILES = {
    "ca-certificate": "ca.crt",
    "ca-key": "ca.key",
    "signing-key": "signing.key",
    "verify-keys": "signing.pub.json",
    "token-key": "token.key",
}
_GENERATED: Mapping[str, Callable[[], str]] = {
    "fernet-key": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "api-secret-key": lambda: secrets.token_hex(32),
    "jwt-secret": lambda: secrets.token_hex(32),
}


def read_values(directory: Path) -> dict[str, str]:
    """A value for every secret: read from `directory`, or generated; InfraError names the file that is missing."""
    values = {name: make() for name, make in _GENERATED.items()}
    for name, file in _FILES.items():
        try:
            values[name] = (directory / file).read_text()
        except OSError as error:
            raise InfraError(f"{directory / file}: {error.strerror}; `airbridge init` makes it") from error
    return values


def fill(client: Any, prefix: str, values: Mapping[str, str]) -> list[str]:
    """Give every empty secret its value; the names of those that were empty."""
    filled = []
    for name, value in sorted(values.items()):
        identifier = f"{prefix}/{name}"
        if not client.describe_secret(SecretId=identifier).get("VersionIdsToStages"):
            client.put_secret_value(SecretId=identifier, SecretString=value)
            filled.append(name)
    return filled


def publish_certificate(bucket: str, client: Any, certificate: str) -> None:
    """Put the CA's certificate, which is public, where a region's new instances fetch it."""
    client.put_object(Bucket=bucket, Key=CERTIFICATE_KEY, Body=certificate.encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill and publish; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.secrets", description="Fill empty secrets."
    )
    parser.add_argument("--environment", required=True)
    parser.add_argument("--directory", type=Path, required=True, help="what `airbridge init` made")
    options = parser.parse_args(arguments)
    try:
        environment = environments.load(Path("environments") / f"{options.environment}.toml")
        values = read_values(options.directory)
        manager = boto3.client("secretsmanager", region_name=environment.home_region)
        filled = fill(manager, environment.names.base, values)
        for region in environment.regions:
            bucket = environment.names.bundle_bucket(region.name)
            publish_certificate(bucket, boto3.client("s3", region_name=region.name), values["ca-certificate"])
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"filled: {', '.join(filled) or 'nothing was empty'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
