"""Terraform deployment on an emulator (`make infra-local`), as used by local mode: regions, and a role for each process.

Two files of the deployment's output directory are read: `regions.toml`, the region catalogue with the emulator's URL, and
`outputs.json`, the outputs by stack with the roles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airbridge.control_plane.local.services.aws import EmulatedRegion
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError

CATALOGUE = "regions.toml"
OUTPUTS = "outputs.json"
# Processes of the control plane that have their own role.
SERVICES = ("api-server", "dag-processor", "gateway", "scheduler", "triggerer")
_HOME_STACK = "control-plane"


@dataclass(frozen=True)
class Deployed:
    """Regions and roles of one deployment."""

    catalogue: Catalogue
    #: Text of the catalogue, which the platform reads too.
    text: str
    endpoint_url: str
    service_roles: Mapping[str, str]
    #: ARN of the workers' role by region and pool.
    worker_roles: Mapping[tuple[str, str], str]

    @property
    def regions(self) -> tuple[EmulatedRegion, ...]:
        """Regions and their pools, the home region first."""
        ordered = sorted(self.catalogue.regions, key=lambda region: region.name != self.catalogue.home_region)
        return tuple(
            EmulatedRegion(name=region.name, pools=tuple(pool.name for pool in region.pools))
            for region in ordered
        )

    @property
    def data_buckets(self) -> Mapping[str, tuple[str, ...]]:
        """Buckets of each region's data. They belong to the data's owner: Terraform does not create them."""
        return {
            region.name: tuple(
                dict.fromkeys(uri.removeprefix("s3://").split("/", 1)[0] for uri in region.data)
            )
            for region in self.catalogue.regions
        }

    @property
    def roles(self) -> tuple[str, ...]:
        """ARNs of all roles."""
        return (*self.service_roles.values(), *self.worker_roles.values())


def read(directory: Path) -> Deployed:
    """Read a deployment's output directory. Raises `ConfigurationError` naming the file and the missing entry."""
    outputs = _outputs(directory / OUTPUTS)
    source = directory / CATALOGUE
    catalogue = Catalogue.read(source)
    return Deployed(
        catalogue=catalogue,
        text=source.read_text(),
        endpoint_url=_endpoint(source, catalogue),
        service_roles=_service_roles(directory / OUTPUTS, outputs),
        worker_roles=dict(_worker_roles(directory / OUTPUTS, outputs, catalogue)),
    )


def check_applied(deployed: Deployed, directory: Path, credentials: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` unless the emulator runs and has what the files of the deployment name."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    home = deployed.catalogue.home
    # Without the user's proxy: the emulator is on this machine.
    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}, proxies={})
    try:
        s3 = boto3.client(
            "s3", region_name=home.name, endpoint_url=deployed.endpoint_url, config=config, **credentials
        )
        s3.head_bucket(Bucket=home.bundle_bucket)
    except (BotoCoreError, ClientError, ValueError) as error:
        reason = str(error).partition("<")[0].strip()
        raise ConfigurationError(
            f"the deployment in {directory} is not there: bucket {home.bundle_bucket} at {deployed.endpoint_url} "
            f"cannot be reached ({reason}); run 'make infra-local' first"
        ) from error


def _outputs(path: Path) -> dict[str, Any]:
    try:
        outputs = json.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}; 'make infra-local' deploys to an emulator and writes it"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    if not isinstance(outputs, dict):
        raise ConfigurationError(f"{path} holds {type(outputs).__name__}; it must hold outputs by stack")
    return outputs


def _endpoint(path: Path, catalogue: Catalogue) -> str:
    """Return the emulator's URL. Raises `ConfigurationError` without one: local mode must not run against an AWS account."""
    urls = {region.endpoint_url for region in catalogue.regions}
    if len(urls) != 1 or None in urls:
        raise ConfigurationError(
            f"{path}: every region must have the same endpoint_url, an emulator's; found {sorted(map(str, urls))}"
        )
    return str(urls.pop())


def _service_roles(path: Path, outputs: Mapping[str, Any]) -> dict[str, str]:
    arns = _output(path, outputs, _HOME_STACK, "role_arns")
    missing = [name for name in SERVICES if name not in arns]
    if missing:
        raise ConfigurationError(f"{path}: {_HOME_STACK}, role_arns has no role for {', '.join(missing)}")
    return {name: str(arns[name]) for name in SERVICES}


def _worker_roles(path: Path, outputs: Mapping[str, Any], catalogue: Catalogue) -> Any:
    for region, pool in catalogue.places():
        stack = f"edge-{region.name}"
        arns = _output(path, outputs, stack, "worker_role_arns")
        if pool.name not in arns:
            raise ConfigurationError(f"{path}: {stack}, worker_role_arns has no role for pool {pool.name}")
        yield (region.name, pool.name), str(arns[pool.name])


def _output(path: Path, outputs: Mapping[str, Any], stack: str, name: str) -> Mapping[str, Any]:
    value = outputs.get(stack, {}).get(name)
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{path}: {stack} has no output {name!r}; 'make infra-local' writes it again"
        )
    return value
