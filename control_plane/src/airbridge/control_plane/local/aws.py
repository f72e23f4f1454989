"""AWS on loopback: which queues and buckets a local platform has, and the region catalogue that names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from airbridge.control_plane.local import ports

ACCOUNT = "123456789012"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "airbridge-local",
    "AWS_SECRET_ACCESS_KEY": "airbridge-local",
}
BOTO_CREDENTIALS = {
    "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
    "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
}
MAX_RECEIVES = 10
"""After so many receives without a claim a message is poison and goes to the dead-letter queue."""
VISIBILITY_SECONDS = 60


class Region(BaseModel):
    """One region's queues and buckets."""

    model_config = ConfigDict(frozen=True)

    name: str
    pools: tuple[str, ...] = ("default",)

    @property
    def log_bucket(self) -> str:
        """Where task logs go."""
        return f"airbridge-local-{self.name}-logs"

    @property
    def bundle_bucket(self) -> str:
        """Where DAG snapshots go."""
        return f"airbridge-local-{self.name}-dags"

    @property
    def data_bucket(self) -> str:
        """What tasks of this region are placed near."""
        return f"airbridge-local-{self.name}-data"

    @property
    def dead_letter_queue(self) -> str:
        """One dead-letter queue a region."""
        return f"airbridge-local-{self.name}-dead"

    def queue(self, pool: str) -> str:
        """Return the name of a pool's work queue."""
        return f"airbridge-local-{self.name}-{pool}"


class Resources(BaseModel):
    """What the emulator makes, every time it starts: it keeps nothing itself."""

    model_config = ConfigDict(frozen=True)

    home_region: str
    regions: tuple[Region, ...]
    slots: int = 8
    """Of each worker."""


def endpoint(port: int) -> str:
    """Return the emulator's URL."""
    return f"http://{ports.LOOPBACK}:{port}"


def queue_url(port: int, queue: str) -> str:
    """Return a queue's URL: the emulator's endpoint, the account, the name."""
    return f"{endpoint(port)}/{ACCOUNT}/{queue}"


def catalogue(resources: Resources, port: int) -> str:
    """Return the region catalogue as TOML (see docs/architecture.md)."""
    sections = [f'home_region = "{resources.home_region}"\n']
    for region in resources.regions:
        sections.append(
            "[[region]]\n"
            f'name = "{region.name}"\n'
            f'log_bucket = "{region.log_bucket}"\n'
            f'bundle_bucket = "{region.bundle_bucket}"\n'
            f'dead_letter_queue_url = "{queue_url(port, region.dead_letter_queue)}"\n'
            f'endpoint_url = "{endpoint(port)}"\n'
            f'data = ["s3://{region.data_bucket}"]\n'
        )
        sections += [_pool(region, pool, port, resources.slots) for pool in region.pools]
    return "\n".join(sections)


def _pool(region: Region, pool: str, port: int, slots: int) -> str:
    url = queue_url(port, region.queue(pool))
    return f'[[region.pool]]\nname = "{pool}"\nqueue_url = "{url}"\nslots = {slots}\n'


def write(path: Path, resources: Resources) -> None:
    """Write the list for the emulator."""
    path.write_text(resources.model_dump_json(indent=2))


def read(path: Path) -> Resources:
    """Read the list."""
    return Resources.model_validate_json(path.read_bytes())


def parse_regions(words: Sequence[str]) -> tuple[Region, ...]:
    """Read ``us-east-1`` or ``us-east-1:default,gpu`` into regions."""
    regions = []
    for word in words:
        name, _, pools = word.partition(":")
        regions.append(Region(name=name, pools=tuple(pools.split(",")) if pools else ("default",)))
    return tuple(regions)
