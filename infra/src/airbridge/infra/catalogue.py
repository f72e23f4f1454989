"""The region catalogue: what the platform reads to know its regions, written from what the stacks made.

    python -m airbridge.infra.catalogue outputs.json > regions.toml

`outputs.json` is what `cdktf deploy --outputs-file` or `terraform output -json` leaves, by stack.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airbridge.infra.environment import Environment, RegionConfig, Site
from airbridge.infra.exceptions import CatalogueError, InfraError
from airbridge.infra.names import Names

EDGE_PREFIX = "edge-"


@dataclass(frozen=True)
class CatalogueRegion:
    """The entry of a region, or of a site, which is one whose queues and buckets lie in another of AWS."""

    name: str
    log_bucket: str
    bundle_bucket: str
    dead_letter_queue_url: str
    queue_urls: Mapping[str, str]
    slots: Mapping[str, int]
    role_arns: Mapping[str, str]
    data: Sequence[str] = ()
    #: Where a site's queues and buckets are, and how its workers reach them; a region of AWS has none of these keys.
    place: Mapping[str, str] = field(default_factory=dict)
    endpoint_url: str = ""
    #: What the region keeps, under an empty name, and each pool; only what the environment file sets.
    keeps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def expected(cls, names: Names, region: RegionConfig) -> CatalogueRegion:
        """The entry of a region in AWS, where every name and address is known beforehand."""
        return cls(
            name=region.name,
            log_bucket=names.log_bucket(region.name),
            bundle_bucket=names.bundle_bucket(region.name),
            dead_letter_queue_url=names.queue_url(region.name, names.dead_letter_queue(region.name)),
            queue_urls={
                pool.name: names.queue_url(region.name, names.queue(region.name, pool.name))
                for pool in region.pools
            },
            slots={pool.name: pool.slots for pool in region.pools},
            role_arns={pool.name: names.worker_role_arn(region.name, pool.name) for pool in region.pools},
            data=region.data,
            keeps=kept(region),
        )

    @classmethod
    def expected_site(cls, names: Names, site: Site) -> CatalogueRegion:
        """The entry of a site, whose resources are in the region beside it."""
        own = names.site(site.name)
        return cls(
            name=site.name,
            log_bucket=names.log_bucket(own),
            bundle_bucket=names.bundle_bucket(own),
            dead_letter_queue_url=names.queue_url(site.beside, names.dead_letter_queue(own)),
            queue_urls={
                pool.name: names.queue_url(site.beside, names.queue(own, pool.name)) for pool in site.pools
            },
            slots={pool.name: pool.slots for pool in site.pools},
            role_arns=site_roles(names, site),
            data=site.data,
            place=place_of(site),
            keeps=site_keeps(names, site),
        )

    @classmethod
    def deployed(cls, stack: str, outputs: Mapping[str, Any], endpoint_url: str = "") -> CatalogueRegion:
        """The entry of a region from its stack's outputs; CatalogueError names stack and output."""
        try:
            return cls(
                name=outputs["region_name"],
                log_bucket=outputs["log_bucket"],
                bundle_bucket=outputs["bundle_bucket"],
                dead_letter_queue_url=outputs["dead_letter_queue_url"],
                queue_urls=outputs["queue_urls"],
                slots=outputs["slots"],
                role_arns=outputs["worker_role_arns"],
                data=outputs["data"],
                place=outputs.get("place", {}),
                endpoint_url=endpoint_url,
                keeps=outputs.get("keeps", {}),
            )
        except KeyError as error:
            raise CatalogueError(
                f"{stack}: there is no output {error.args[0]!r}; deploy the stack again"
            ) from error

    def toml(self) -> str:
        """The entry as the platform reads it."""
        values = {
            "name": self.name,
            **self.place,
            "log_bucket": self.log_bucket,
            "bundle_bucket": self.bundle_bucket,
            "dead_letter_queue_url": self.dead_letter_queue_url,
            **({"endpoint_url": self.endpoint_url} if self.endpoint_url else {}),
            "data": list(self.data),
            **self.keeps.get("", {}),
        }
        lines = ["[[region]]", *(_line(key, value) for key, value in values.items())]
        for pool, url in sorted(self.queue_urls.items()):
            lines += ["", "[[region.pool]]", _line("name", pool), _line("queue_url", url)]
            # Terraform writes the numbers of a map of numbers as text in some versions.
            lines.append(_line("slots", int(self.slots[pool])))
            if pool in self.role_arns:
                lines.append(_line("role_arn", self.role_arns[pool]))
            lines += [_line(key, value) for key, value in self.keeps.get(pool, {}).items()]
        return "\n".join(lines) + "\n"


def place_of(site: Site) -> dict[str, str]:
    """Return where a site's queues and buckets are, and how its workers reach them, by the catalogue's keys."""
    credentials = {"credentials": site.credentials} if site.credentials else {}
    return {"aws_region": site.beside, "transport": site.transport, **credentials}


def site_roles(names: Names, site: Site) -> dict[str, str]:
    """Return the roles by pool whose credentials the gateway gives the site's workers, if it gives them any."""
    if not site.is_brokered:
        return {}
    return {pool.name: names.site_role_arn(site.name, pool.name) for pool in site.pools}


def site_keeps(names: Names, site: Site) -> dict[str, dict[str, Any]]:
    """Return what `kept` does, and the roles of tasks."""
    found = kept(site)
    for pool in site.pools:
        if pool.task_statements:
            role = f"arn:aws:iam::{names.account}:role/{names.site_task_role(site.name, pool.name)}"
            found.setdefault(pool.name, {})["task_role_arn"] = role
    return found


def expected(environment: Environment) -> list[CatalogueRegion]:
    """Return the entries of every region and site of an environment in AWS."""
    names = environment.names
    regions = [CatalogueRegion.expected(names, region) for region in environment.regions]
    return regions + [CatalogueRegion.expected_site(names, site) for site in environment.sites]


def kept(region: RegionConfig | Site) -> dict[str, dict[str, Any]]:
    """Return what a region and its pools keep, as far as their entries set it; of a site's pools, also what their hosts have."""
    given = {
        "": region.model_dump(
            include={"residency", "xcom_inline_bytes", "xcom_preview_bytes", "triggers"}, exclude_unset=True
        )
    }
    for pool in region.pools:
        keys = {"xcom_inline_bytes", "secrets_backend", "secrets_backend_kwargs", "triggers"}
        keys |= {"slot_memory", "slot_cpus", "max_absence_days"}
        given[pool.name] = pool.model_dump(include=keys, exclude_unset=True)
    return {name: values for name, values in given.items() if values}


def render(
    home_region: str,
    regions: Iterable[CatalogueRegion],
    teams: Iterable[Mapping[str, Any]] = (),
    prices: Mapping[str, Mapping[str, float]] | None = None,
    limits: Iterable[Mapping[str, Any]] = (),
) -> str:
    """The catalogue, in TOML. Teams, limits and prices have the keys of the environment file."""
    entries = [region.toml() for region in sorted(regions, key=lambda region: region.name)]
    entries += [
        *map(_team, teams),
        *map(_limit, limits),
        *(_prices(name, table) for name, table in (prices or {}).items() if table),
    ]
    return "\n".join([_line("home_region", home_region) + "\n", *entries])


def _prices(name: str, table: Mapping[str, float]) -> str:
    lines = [f"[prices.{name}]", *(_line(json.dumps(of), price) for of, price in table.items())]
    return "\n".join(lines) + "\n"


def _team(team: Mapping[str, Any]) -> str:
    lines = ["[[team]]", *(_line(key, team[key]) for key in ("name", "bundles", "weight"))]
    if team["quota"]:
        lines += [
            "",
            "[team.quota]",
            *(_line(json.dumps(queue), slots) for queue, slots in team["quota"].items()),
        ]
    return "\n".join(lines) + "\n"


def _limit(limit: Mapping[str, Any]) -> str:
    given = {key: value for key, value in limit.items() if value is not None}
    return "\n".join(["[[limit]]", *(_line(key, value) for key, value in given.items())]) + "\n"


def from_outputs(outputs: Mapping[str, Any], endpoint_url: str = "") -> str:
    """Return the catalogue of every edge stack in `outputs`. Raises CatalogueError, which names the missing outputs."""
    control_plane = _plain(outputs.get("control-plane", {}))
    if "home_region" not in control_plane:
        raise CatalogueError(
            "control-plane: there is no output 'home_region'; deploy the control plane first"
        )
    edges = {stack: _plain(values) for stack, values in outputs.items() if stack.startswith(EDGE_PREFIX)}
    regions = [
        CatalogueRegion.deployed(stack, entry, endpoint_url)
        for stack, edge in edges.items()
        for entry in (edge, *edge.get("sites", ()))
    ]
    if not regions:
        raise CatalogueError(
            "there is no edge stack in the outputs; deploy at least one, as in edge-eu-west-1"
        )
    return render(
        control_plane["home_region"],
        regions,
        control_plane.get("teams", ()),
        control_plane.get("prices"),
        control_plane.get("limits", ()),
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs as `terraform output -json` writes them hold their value one level down."""
    return {
        name: item["value"] if isinstance(item, Mapping) and {"value", "type"} <= item.keys() else item
        for name, item in values.items()
    }


def _line(key: str, value: str | float | Sequence[str] | Mapping[str, Any]) -> str:
    if isinstance(value, Mapping):
        inner = (_line(json.dumps(name), each) for name, each in value.items() if each is not None)
        return f"{key} = {{ {', '.join(inner)} }}"
    # A JSON string, number or list of strings is also a TOML one.
    return f"{key} = {json.dumps(value, ensure_ascii=False)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the catalogue to stdout; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.catalogue",
        description="Write the region catalogue from Terraform's outputs.",
        epilog="Example: python -m airbridge.infra.catalogue .local/outputs.json > regions.toml",
    )
    parser.add_argument("outputs", type=Path, help="outputs by stack, in JSON")
    parser.add_argument("--endpoint-url", default="", help="of an AWS emulator")
    options = parser.parse_args(arguments)
    try:
        sys.stdout.write(from_outputs(_read(options.outputs), options.endpoint_url))
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _read(path: Path) -> dict[str, Any]:
    try:
        outputs = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CatalogueError(f"{path}: {error}") from error
    if not isinstance(outputs, dict):
        raise CatalogueError(f"{path}: holds {type(outputs).__name__}; expected outputs by stack")
    return outputs


if __name__ == "__main__":
    sys.exit(main())
