"""Sharing of pools: teams, limits, prices."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from airbridge.infra.environment.values import Model, PoolName


class Team(Model):
    """Bundles whose tasks share pools with those of other teams."""

    name: PoolName = Field(
        description="name of the team; `default` has every bundle that no other team names"
    )
    bundles: tuple[str, ...] = Field(default=(), description="names of the team's DAG bundles")
    weight: Annotated[
        float,
        Field(
            ge=0.001,
            le=1000,
            description="share of a pool that several teams have work for, beside the others' weights",
        ),
    ] = 1.0
    quota: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="slots that the team's work may have at one time, by queue: `region` or `pool@region`",
    )


class Limit(Model):
    """Limit on the tasks that run at one time, or start within a minute, in all regions together."""

    name: PoolName = Field(description="name of the limit, which tasks give in their hints")
    max_running: Annotated[int | None, Field(ge=1, description="tasks that run at one time")] = None
    starts_per_minute: Annotated[
        int | None, Field(ge=1, le=10_000, description="tasks that start within any minute")
    ] = None
    pools: tuple[str, ...] = Field(
        default=(),
        description="queues whose tasks all count, beside those that name the limit: `region` or `pool@region`",
    )


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(Model):
    """Prices that placement weighs, all in one currency; what has no price is free."""

    egress: dict[str, Price] = Field(
        default={}, description="a GiB that leaves a region, by region; `*` is every other one"
    )
    slot_hour: dict[str, Price] = Field(
        default={},
        description="an hour of one slot, by queue (`region` or `pool@region`); `*` is every other one",
    )
