"""ECR: the registries of an environment, and the repositories that a push needs.

A push makes no repository, and replication makes one only at the next push: in a new region there is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import boto3  # comes with airbridge-core
from botocore.exceptions import BotoCoreError, ClientError

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import CheckoutError, RegistryError
from airbridge.ci.release import pins

_ADDRESS = re.compile(
    r"^(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com/(?P<prefix>.+)$"
)
Clients = Callable[[str, str], Any]


def addresses(checkout: Checkout, environment: str) -> tuple[str, ...]:
    """Addresses of an environment's registries: that of its home region, then those of its other regions."""
    path = pins.toml_path(environment)
    if not checkout.has(path):
        raise CheckoutError(f"{path}: there is no such environment")
    written = checkout.source(path).toml
    try:
        account, home = str(written["account"]), str(written["home_region"])
    except KeyError as error:
        raise CheckoutError(f"{path}: {error.args[0]}: is missing") from error
    others = sorted({*pins.load(checkout, environment).regions} - {home})
    return tuple(
        f"{account}.dkr.ecr.{region}.amazonaws.com/airbridge-{environment}" for region in (home, *others)
    )


def require_repositories(address: str, images: list[str], clients: Clients | None = None) -> list[str]:
    """Make the repositories of ECR that are missing, and return their names; nothing for another registry.

    Made as the stacks make them: tags never move, pushes are scanned. RegistryError names repository and account.
    """
    found = _ADDRESS.match(address)
    if found is None:
        return []
    client = (clients or _client)("ecr", found["region"])
    made = []
    for name in (f"{found['prefix']}/{image}" for image in images):
        try:
            client.create_repository(
                registryId=found["account"],
                repositoryName=name,
                imageTagMutability="IMMUTABLE",
                imageScanningConfiguration={"scanOnPush": True},
            )
        except client.exceptions.RepositoryAlreadyExistsException:
            continue
        except (BotoCoreError, ClientError) as error:
            raise RegistryError(f"{address}: the repository {name} cannot be made: {error}") from error
        made.append(name)
    return made


def _client(service: str, region: str) -> Any:
    return boto3.client(service, region_name=region)
