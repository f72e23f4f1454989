"""Fixes of gaps in moto, one module a service. `apply` puts all of it over moto, once, before the server starts."""

from __future__ import annotations

import importlib

NAMES = (
    "authorisation",
    "autoscaling",
    "ecs",
    "ecs_sessions",
    "elbv2",
    "launch_templates",
    "nat_gateways",
    "rds",
    "route53",
    "s3",
    "security_groups",
    "service_quotas",
    "sqs",
    "vpc_endpoints",
)


def apply(names: tuple[str, ...] = NAMES) -> None:
    """Put the named fixes over moto."""
    for name in names:
        importlib.import_module(f"{__name__}.{name}").apply()
