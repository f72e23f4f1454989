"""Emulated AWS: the queues and buckets of a local platform, and its region catalogue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from airbridge.control_plane.local import ports
from airbridge.core.exceptions import ConfigurationError

ACCOUNT = "123456789012"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "airbridge-local",
    "AWS_SECRET_ACCESS_KEY": "airbridge-local",
}
BOTO_CREDENTIALS = {
    "aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
    "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
}
# Receives without a claim after which a message is poison and moves to the dead-letter queue.
MAX_RECEIVES = 10
VISIBILITY_SECONDS = 60
_BROKERED = "+brokered"
_POOL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class EmulatedRegion(BaseModel):
    """Queues and buckets of one region."""

    model_config = ConfigDict(frozen=True)

    name: str
    pools: tuple[str, ...] = ("default",)
    #: Region of AWS with the queues and buckets of a place that is none itself; its workers go through the gateway.
    through: str | None = None
    #: They go to AWS with credentials of the gateway instead.
    brokered: bool = False

    @property
    def word(self) -> str:
        """The region as `parse_regions` reads it."""
        place = f"{self.name}@{self.through}" if self.through else self.name
        place += _BROKERED if self.brokered else ""
        return f"{place}:{','.join(self.pools)}"

    @property
    def aws_region(self) -> str:
        """Region of AWS in which the queues and buckets are."""
        return self.through or self.name

    @property
    def log_bucket(self) -> str:
        """Bucket of task logs."""
        return f"airbridge-local-{self.name}-logs"

    @property
    def bundle_bucket(self) -> str:
        """Bucket of DAG snapshots."""
        return f"airbridge-local-{self.name}-dags"

    @property
    def data_bucket(self) -> str:
        """Bucket of data, which tasks are placed near."""
        return f"airbridge-local-{self.name}-data"

    @property
    def dead_letter_queue(self) -> str:
        """Dead-letter queue of all pools of the region."""
        return f"airbridge-local-{self.name}-dead"

    def queue(self, pool: str) -> str:
        """Return the name of a pool's work queue."""
        return f"airbridge-local-{self.name}-{pool}"


class Resources(BaseModel):
    """Resources that the emulator creates at every start: it does not persist them."""

    model_config = ConfigDict(frozen=True)

    home_region: str
    regions: tuple[EmulatedRegion, ...]
    #: Of each worker.
    slots: int = 8


def endpoint(port: int) -> str:
    """Return the emulator's URL."""
    return f"http://{ports.LOOPBACK}:{port}"


def queue_url(port: int, queue: str) -> str:
    """Return a queue's URL: the emulator's endpoint, the account, the name."""
    return f"{endpoint(port)}/{ACCOUNT}/{queue}"


def catalogue(resources: Resources, port: int) -> str:
    """Return the region catalogue as TOML (see docs/reference/interfaces.md)."""
    sections = [f'home_region = "{resources.home_region}"\n']
    for region in resources.regions:
        sections.append(
            "[[region]]\n"
            f'name = "{region.name}"\n'
            f'log_bucket = "{region.log_bucket}"\n'
            f'bundle_bucket = "{region.bundle_bucket}"\n'
            f'dead_letter_queue_url = "{queue_url(port, region.dead_letter_queue)}"\n'
            f'endpoint_url = "{endpoint(port)}"\n'
            + (
                f'data = ["s3://{region.data_bucket}"]\n'
                if region.through is None
                else f'aws_region = "{region.through}"\n{_way(region)}\ndata = ["file:///{region.name}"]\n'
            )
        )
        sections += [_pool(region, pool, port, resources.slots) for pool in region.pools]
    return "\n".join(sections)


def _pool(region: EmulatedRegion, pool: str, port: int, slots: int) -> str:
    url = queue_url(port, region.queue(pool))
    arn = f"arn:aws:iam::{ACCOUNT}:role/airbridge-local-{region.name}"
    role = f'role_arn = "{arn}"\ntask_role_arn = "{arn}-tasks"\n' if region.brokered else ""
    return f'[[region.pool]]\nname = "{pool}"\nqueue_url = "{url}"\nslots = {slots}\n{role}'


def _way(region: EmulatedRegion) -> str:
    return 'credentials = "brokered"' if region.brokered else 'transport = "gateway"'


def write(path: Path, resources: Resources) -> None:
    """Write the list for the emulator."""
    path.write_text(resources.model_dump_json(indent=2))


def read(path: Path) -> Resources:
    """Read the list."""
    return Resources.model_validate_json(path.read_bytes())


def parse_regions(words: Sequence[str]) -> tuple[EmulatedRegion, ...]:
    """Read ``us-east-1`` or ``us-east-1:default,gpu`` into regions. Raises `ConfigurationError`.

    The emulator has the regions of AWS and no others. ``factory-7@us-east-1`` is a place without AWS, whose queues and buckets are in
    that region, and whose workers go through the gateway; those of ``depot-3@us-east-1+brokered`` have AWS credentials of the gateway.
    """
    known = _aws_regions()
    regions: list[EmulatedRegion] = []
    for word in words:
        given, colon, pools = word.partition(":")
        names = tuple(pools.split(",")) if colon else ("default",)
        given, brokered = given.removesuffix(_BROKERED), given.endswith(_BROKERED)
        name, at, through = given.partition("@")
        if brokered and not at:
            raise ConfigurationError(
                f"--region {word!r}: {_BROKERED} is for places without AWS, such as depot-3@us-east-1{_BROKERED}"
            )
        if at and (not _POOL.fullmatch(name) or name in known):
            raise ConfigurationError(
                f"--region {word!r}: {name!r} cannot be the name of a place without AWS; write NAME@REGION with a name of "
                "lower-case letters, digits and hyphens that is no region of AWS, such as factory-7@us-east-1"
            )
        if (through or name) not in known:
            unknown = through or name
            raise ConfigurationError(
                f"--region {word!r}: unknown region {unknown!r}{_similar(unknown, known)}"
            )
        if any(region.name == name for region in regions):
            raise ConfigurationError(
                f"--region {name} is given twice; name its pools once, as {name}:default,gpu"
            )
        wrong = [pool for pool in names if not _POOL.fullmatch(pool)]
        if wrong or len(set(names)) != len(names):
            raise ConfigurationError(
                f"--region {word!r}: {wrong[0] if wrong else names[0]!r} cannot be a pool's name here; "
                "write NAME:POOL,POOL with names of lower-case letters, digits and hyphens, each once"
            )
        regions.append(EmulatedRegion(name=name, pools=names, through=through or None, brokered=brokered))
    if regions and regions[0].through is not None:
        raise ConfigurationError(
            f"--region {words[0]!r}: the first region is the control plane's own; name one of AWS first"
        )
    return tuple(regions)


def _aws_regions() -> tuple[str, ...]:
    """Return the names of AWS's regions, from the data that boto has on disk."""
    import botocore.session

    session = botocore.session.get_session()
    return tuple(
        name
        for partition in session.get_available_partitions()
        for name in session.get_available_regions("sqs", partition)
    )


def _similar(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    return (
        f"; did you mean {' or '.join(close)}?" if close else "; local mode has AWS's, such as eu-central-1"
    )
