"""Fills the foundation's empty secrets, and publishes the CA's certificate to the regions.

    python -m airbridge.infra.tools.secrets fill --environment dev --directory keys
    python -m airbridge.infra.tools.secrets publish --environment dev [--region eu-west-1 ...]

`fill` runs between the stacks `foundation` and `control-plane`. `directory` is what `airbridge init` made: ca.crt, ca.key, signing.key,
signing.pub.json, token.key, publish.key, publish.pub.json. Fernet key, session key, JWT secret and the passwords of the database roles are
generated. With `client_secret` of `[control_plane.auth]`, ui-oidc.secret in the directory is the client's secret. A secret that has a
value keeps it. Values never pass through Terraform.

`publish` runs after a region's stack, which makes the bucket that its instances fetch the certificate from. The certificate is the
secret `ca-certificate`, so that the keys need not be at hand.
"""

from __future__ import annotations

import argparse
import base64
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError

from airbridge.infra import environment as environments
from airbridge.infra import service_secrets
from airbridge.infra.environment import Environment
from airbridge.infra.exceptions import InfraError
from airbridge.infra.service_secrets import database_secret
from airbridge.infra.ui_auth import CLIENT_SECRET, SECRET_FILE

CERTIFICATE_KEY = "trust/ca.crt"
FILES = {
    "ca-certificate": "ca.crt",
    "ca-key": "ca.key",
    "signing-key": "signing.key",
    "verify-keys": "signing.pub.json",
    "token-key": "token.key",
    "publishing-key": "publish.key",
    "publishing-keys": "publish.pub.json",
}
GENERATED: Mapping[str, Callable[[], str]] = {
    "fernet-key": lambda: base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "api-secret-key": lambda: secrets.token_hex(32),
    "jwt-secret": lambda: secrets.token_hex(32),
    # An empty list: nothing has been rotated yet.
    "old-token-keys": lambda: "[]",
    **{database_secret(name): lambda: secrets.token_urlsafe(32) for name in service_secrets.services()},
}


def read_values(directory: Path, *, client_secret: bool = False) -> dict[str, str]:
    """A value for every secret: read from `directory`, or generated; InfraError names the file that is missing."""
    values = {name: make() for name, make in GENERATED.items()}
    for name, file in FILES.items():
        values[name] = _read(directory / file, "`airbridge init` makes it")
    if client_secret:
        why = "it holds the secret of the client that [control_plane.auth] names, from the issuer"
        values[CLIENT_SECRET] = _read(directory / SECRET_FILE, why)
    return values


def _read(file: Path, why: str) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise InfraError(f"{file}: {error.strerror}; {why}") from error


def fill(client: Any, prefix: str, values: Mapping[str, str]) -> list[str]:
    """Give every empty secret its value; the names of those that were empty. Raises InfraError if a secret does not exist."""
    filled = []
    for name, value in sorted(values.items()):
        identifier = f"{prefix}/{name}"
        with _named("ResourceNotFoundException", f"there is no secret {identifier}; deploy foundation first"):
            described = client.describe_secret(SecretId=identifier)
        if not described.get("VersionIdsToStages"):
            client.put_secret_value(SecretId=identifier, SecretString=value)
            filled.append(name)
    return filled


def publish(environment: Environment, regions: Sequence[str]) -> list[str]:
    """Publish the CA's certificate to regions (all, if none is named); the regions. Raises InfraError naming a missing stack."""
    known = [region.name for region in environment.regions]
    if unknown := sorted(set(regions) - set(known)):
        raise InfraError(f"no region {', '.join(unknown)}; there are {', '.join(known)}")
    certificate = _certificate(environment)
    chosen = list(regions) or known
    for region in chosen:
        _publish(boto3.client("s3", region_name=region), environment.names.bundle_bucket(region), certificate)
    return chosen


def _certificate(environment: Environment) -> str:
    manager = boto3.client("secretsmanager", region_name=environment.home_region)
    name = f"{environment.names.base}/ca-certificate"
    with _named(
        "ResourceNotFoundException", f"the secret {name} has no value; deploy foundation and run `fill` first"
    ):
        return str(manager.get_secret_value(SecretId=name)["SecretString"])


def _publish(client: Any, bucket: str, certificate: str) -> None:
    """Put the CA's certificate, which is public, where a region's new instances fetch it."""
    with _named("NoSuchBucket", f"there is no bucket {bucket}; deploy its edge stack first"):
        client.put_object(Bucket=bucket, Key=CERTIFICATE_KEY, Body=certificate.encode())


@contextmanager
def _named(code: str, message: str) -> Iterator[None]:
    """Replace AWS's error of this code by one that names what to do first."""
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] != code:
            raise
        raise InfraError(message) from error


def _fill(environment: Environment, directory: Path) -> str:
    auth = environment.control_plane.auth
    values = read_values(directory, client_secret=auth is not None and auth.client_secret)
    manager = boto3.client("secretsmanager", region_name=environment.home_region)
    filled = fill(manager, environment.names.base, values)
    return f"filled: {', '.join(filled) or 'nothing was empty'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.secrets",
        description="Fill empty secrets, and publish the CA's certificate.",
        epilog="Example: python -m airbridge.infra.tools.secrets fill --environment dev --directory keys",
    )
    steps = parser.add_subparsers(dest="step", required=True)
    filling = steps.add_parser("fill", help="after the stack foundation, before control-plane")
    filling.add_argument("--directory", type=Path, required=True, help="what `airbridge init` made")
    publishing = steps.add_parser("publish", help="after a region's stack")
    publishing.add_argument(
        "--region", action="append", default=[], help="may be repeated; all, if none is named"
    )
    for step in (filling, publishing):
        step.add_argument("--environment", required=True)
        step.add_argument("--environments", type=Path, default=Path("environments"), help="their directory")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill or publish; 0, or 1 with the reason on stderr."""
    options = _parser().parse_args(arguments)
    try:
        environment = environments.load(options.environments / f"{options.environment}.toml")
        if options.step == "fill":
            line = _fill(environment, options.directory)
        else:
            line = f"published to: {', '.join(publish(environment, options.region))}"
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
