"""Teams and prices of an environment file reach the region catalogue. tests/unit/docs/test_examples.py has the platform read one."""

from __future__ import annotations

from typing import Any

import pytest
from tests.infra.factories import environment, pool, region

from airbridge.infra import catalogue
from airbridge.infra import environment as environments
from airbridge.infra.exceptions import UnsafeStackError

TEAMS: list[dict[str, Any]] = [
    {"name": "default", "weight": 0.5},
    {"name": "finance", "bundles": ["finance-dags"], "quota": {"eu-west-1": 3, "gpu@eu-west-1": 1}},
]


def test_teams_are_in_the_catalogue() -> None:
    """The catalogue has each team with its bundles, weight and quota, as valid TOML."""
    import tomllib

    made = environments.parse(
        environment(team=TEAMS, region=[region(pool=[pool(), pool("gpu")])]), "test.toml"
    )
    regions = [catalogue.CatalogueRegion.expected(made.names, each) for each in made.regions]
    text = catalogue.render("eu-west-1", regions, [team.model_dump(mode="json") for team in made.teams])
    assert tomllib.loads(text)["team"] == [
        {"name": "default", "bundles": [], "weight": 0.5},
        {
            "name": "finance",
            "bundles": ["finance-dags"],
            "weight": 1.0,
            "quota": {"eu-west-1": 3, "gpu@eu-west-1": 1},
        },
    ]


def test_prices_are_in_the_catalogue() -> None:
    """Each table that has prices, as valid TOML."""
    import tomllib

    prices = {"egress": {"*": 0.09, "eu-west-1": 0.02}, "slot_hour": {"gpu@eu-west-1": 0.5}}
    made = environments.parse(
        environment(prices=prices, region=[region(pool=[pool(), pool("gpu")])]), "test.toml"
    )
    assert made.prices is not None
    regions = [catalogue.CatalogueRegion.expected(made.names, each) for each in made.regions]
    text = catalogue.render("eu-west-1", regions, (), made.prices.model_dump(mode="json"))
    assert tomllib.loads(text)["prices"] == prices
    assert "prices" not in tomllib.loads(catalogue.render("eu-west-1", regions, (), {"egress": {}}))


def test_limits_are_in_the_catalogue() -> None:
    """The catalogue has each limit with what it sets, as valid TOML."""
    import tomllib

    limits = [
        {"name": "erp", "max_running": 20, "starts_per_minute": 60},
        {"name": "gpus", "max_running": 2, "pools": ["gpu@eu-west-1"]},
    ]
    made = environments.parse(
        environment(limit=limits, region=[region(pool=[pool(), pool("gpu")])]), "test.toml"
    )
    regions = [catalogue.CatalogueRegion.expected(made.names, each) for each in made.regions]
    text = catalogue.render(
        "eu-west-1",
        regions,
        limits=[limit.model_dump(mode="json", exclude_none=True) for limit in made.limits],
    )
    assert tomllib.loads(text)["limit"] == [{**limits[0], "pools": []}, limits[1]]


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        ({"name": "erp"}, "limit erp: limits nothing"),
        (
            {"name": "erp", "max_running": 1, "pools": ["gpu@mars"]},
            "limit erp: pools: 'gpu@mars' is no queue",
        ),
    ],
)
def test_wrong_limit_is_refused(limit: dict[str, Any], problem: str) -> None:
    """A limit without effect and a pool that does not exist are named."""
    with pytest.raises(UnsafeStackError, match=problem):
        environments.parse(environment(limit=[limit]), "test.toml")
