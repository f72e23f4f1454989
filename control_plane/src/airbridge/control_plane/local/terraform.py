"""What Terraform made on an emulator (`make infra-local`), as local mode uses it: regions, and a role for each process.

Two files of the directory that the deploy leaves are read: `regions.toml`, the region catalogue, which also says where the
emulator is, and `outputs.json`, the stacks' outputs by stack, which name the roles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airbridge.control_plane.local.aws import Region
from airbridge.executor.exceptions import ConfigurationError
from airbridge.executor.regions import Catalogue

CATALOGUE = "regions.toml"
OUTPUTS = "outputs.json"
SERVICES = ("api-server", "dag-processor", "gateway", "scheduler", "triggerer")
"""The control plane's processes that have a role of their own."""
_HOME_STACK = "control-plane"


@dataclass(frozen=True)
class Deployed:
    """The regions and roles of one deployment."""

    catalogue: Catalogue
    text: str
    """The catalogue as it was read: the platform reads the same."""
    endpoint_url: str
    service_roles: Mapping[str, str]
    worker_roles: Mapping[tuple[str, str], str]
    """The ARN of the workers' role by region and pool."""

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions and their pools, the home region first."""
        ordered = sorted(self.catalogue.regions, key=lambda region: region.name != self.catalogue.home_region)
        return tuple(
            Region(name=region.name, pools=tuple(pool.name for pool in region.pools)) for region in ordered
        )

    @property
    def data_buckets(self) -> Mapping[str, tuple[str, ...]]:
        """The buckets that each region's data lies in. They belong to the data's owner: Terraform does not make them."""
        return {
            region.name: tuple(
                dict.fromkeys(uri.removeprefix("s3://").split("/", 1)[0] for uri in region.data)
            )
            for region in self.catalogue.regions
        }

    @property
    def roles(self) -> tuple[str, ...]:
        """The ARNs of all roles."""
        return (*self.service_roles.values(), *self.worker_roles.values())


def read(directory: Path) -> Deployed:
    """Read what a deploy left in `directory`. Raises `ConfigurationError` naming the file and what is missing in it."""
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


def _outputs(path: Path) -> dict[str, Any]:
    try:
        outputs = json.loads(path.read_text())
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}; 'make infra-local' deploys to an emulator and leaves it there"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not JSON: {error}") from error
    if not isinstance(outputs, dict):
        raise ConfigurationError(f"{path} holds {type(outputs).__name__}; it must hold outputs by stack")
    return outputs


def _endpoint(path: Path, catalogue: Catalogue) -> str:
    """Local mode runs on an emulator: without one, a slip would run it against an AWS account."""
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
        raise ConfigurationError(f"{path}: {stack} has no output {name!r}; 'make infra-local' writes it anew")
    return value
