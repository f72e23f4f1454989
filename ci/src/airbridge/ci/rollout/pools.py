"""Pools of an environment's regions: the capacity that each wants, and the worker image that its new instances would run."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import boto3  # comes with airbridge-core
from botocore.exceptions import BotoCoreError, ClientError

from airbridge.ci.exceptions import CiError
from airbridge.ci.release.pins import Pins

_DIGEST = re.compile(r"^AIRBRIDGE_WORKER_IMAGE_DIGEST=(sha256:[0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True)
class Pool:
    """A pool: instances that its group wants, the digest in its launch template, and the derived image that it names."""

    region: str
    name: str
    wanted: int
    digest: str | None
    image: str | None = None

    @property
    def label(self) -> str:
        """Name of the pool and its region, as a queue writes it."""
        return f"{self.name}@{self.region}"


class Pools(Protocol):
    """Reader of the pools of a region."""

    def __call__(self, region: str) -> Sequence[Pool]:
        """Return the region's pools as they are now; CiError if they cannot be read."""


class Want(Protocol):
    """Sets the capacity of pools."""

    def __call__(self, pool: Pool, instances: int) -> None:
        """Have a pool want that many instances; CiError if it cannot be changed."""


def images(pins: Pins) -> dict[str, dict[str, str | None]]:
    """Return the derived image that each pool of an environment's file names, by region and pool."""
    return {
        str(region["name"]): {str(pool["name"]): pool.get("image") for pool in region.get("pool", ())}
        for region in pins.source.toml.get("region", ())
    }


@dataclass(frozen=True)
class AutoScalingPools:
    """Pools as EC2 Auto Scaling has them. `pools` are their derived images by region and name; `client` makes a client of a service in a region."""

    environment: str
    pools: Mapping[str, Mapping[str, str | None]]
    client: Callable[[str, str], Any] = lambda service, region: boto3.client(service, region_name=region)

    def __call__(self, region: str) -> list[Pool]:
        """Return the region's pools; CiError names a pool without a group."""
        try:
            return [self._pool(region, name, image) for name, image in self.pools[region].items()]
        except (BotoCoreError, ClientError) as error:
            raise CiError(f"the pools of {region} cannot be read: {error}") from error

    def want(self, pool: Pool, instances: int) -> None:
        """Set the group's desired capacity; CiError with AWS's reason. An instance too many drains before it ends."""
        try:
            self.client("autoscaling", pool.region).set_desired_capacity(
                AutoScalingGroupName=self._group(pool.region, pool.name), DesiredCapacity=instances
            )
        except (BotoCoreError, ClientError) as error:
            raise CiError(f"{pool.label}: its capacity cannot be set to {instances}: {error}") from error

    def _group(self, region: str, name: str) -> str:
        return f"airbridge-{self.environment}-{region}-{name}"

    def _pool(self, region: str, name: str, image: str | None) -> Pool:
        group = self._group(region, name)
        found = self.client("autoscaling", region).describe_auto_scaling_groups(AutoScalingGroupNames=[group])
        if not found["AutoScalingGroups"]:
            raise CiError(f"{name}@{region}: there is no autoscaling group {group}; deploy edge-{region}")
        described = found["AutoScalingGroups"][0]
        template = described["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
        digest = self._digest(region, template)
        return Pool(region, name, int(described["DesiredCapacity"]), digest, image)

    def _digest(self, region: str, template: Mapping[str, str]) -> str | None:
        versions = self.client("ec2", region).describe_launch_template_versions(
            LaunchTemplateId=template["LaunchTemplateId"], Versions=[str(template["Version"])]
        )["LaunchTemplateVersions"]
        script = base64.b64decode(versions[0]["LaunchTemplateData"]["UserData"]).decode()
        found = _DIGEST.search(script)
        return found[1] if found else None
