"""Environments: what a platform engineer writes in `environments/<name>.toml`, typed and validated.

Every problem is reported at once, each with the file and the key. Rules that span several entries (a region
twice, networks that overlap) are in `validation`, those of sites in `site_rules`, quotas of AWS in `quotas`.
"""

from airbridge.infra.environment.document import Environment
from airbridge.infra.environment.network import Egress, GivenNetwork
from airbridge.infra.environment.reading import load, parse
from airbridge.infra.environment.region import Pool, RegionConfig, TaskStatement
from airbridge.infra.environment.sharing import Limit, Team
from airbridge.infra.environment.site import Site, SitePool
from airbridge.infra.exceptions import EnvironmentFileError

__all__ = [
    "Egress",
    "Environment",
    "EnvironmentFileError",
    "GivenNetwork",
    "Limit",
    "Pool",
    "RegionConfig",
    "Site",
    "SitePool",
    "TaskStatement",
    "Team",
    "load",
    "parse",
]
