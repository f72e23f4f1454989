"""Residency of an environment file reaches the region catalogue, whole, and leaves it as it was where nothing is set."""

from __future__ import annotations

import tomllib
from typing import Any

from tests.infra.factories import environment, pool, region

from airbridge.infra import catalogue
from airbridge.infra import environment as environments

KEPT: dict[str, Any] = {
    "secrets_backend": "acme.Backend",
    "secrets_backend_kwargs": {"region_name": "eu-west-1", "full": True},
}


def rendered(**of_region: Any) -> dict[str, Any]:
    made = environments.parse(environment(region=[region(**of_region)]), "test.toml")
    regions = [catalogue.CatalogueRegion.expected(made.names, each) for each in made.regions]
    return tomllib.loads(catalogue.render("eu-west-1", regions))["region"][0]


def test_residency_is_in_the_catalogue() -> None:
    """Region and pools have what they keep, under the platform's own keys."""
    gpu = {"xcom_inline_bytes": 0, "triggers": "edge"}
    found = rendered(residency="strict", triggers="home", pool=[pool() | KEPT, pool("gpu") | gpu])
    assert found["triggers"] == "home"
    assert found["residency"] == "strict"
    by_name = {each["name"]: each for each in found["pool"]}
    assert KEPT.items() <= by_name["default"].items()
    assert (by_name["gpu"]["xcom_inline_bytes"], by_name["gpu"]["triggers"]) == (0, "edge")
    assert "secrets_backend" not in by_name["gpu"]


def test_unset_residency_is_not_written() -> None:
    """A catalogue without residency is what an older gateway reads."""
    found = rendered(pool=[pool()])
    keys = found.keys() | found["pool"][0].keys()
    assert not {"residency", "xcom_inline_bytes", "xcom_preview_bytes", "secrets_backend", "triggers"} & keys
