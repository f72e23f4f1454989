"""ci/rollout.toml: the order of environments, how long a release must prove itself, and the waves of regions."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from airbridge.ci.exceptions import CiError

FILE = "ci/rollout.toml"
Minutes = Annotated[float, Field(gt=0)]


class Step(BaseModel):
    """One environment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    follows: str | None = None
    soak_minutes: Annotated[float, Field(ge=0)] = 0
    waves: tuple[tuple[str, ...], ...] = ()
    ready_minutes: Minutes = 15
    watch_minutes: Annotated[float, Field(ge=0)] = 10
    error_budget: Annotated[float, Field(ge=0, lt=1)] = 0.02
    slowdown: Annotated[float, Field(gt=1)] = 2.0
    canary_capacity: bool = True
    persons: Annotated[int, Field(ge=1)] = 1

    @property
    def soak(self) -> timedelta:
        """For how long the environment before this one must have been healthy."""
        return timedelta(minutes=self.soak_minutes)

    def waves_of(self, regions: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """The waves of an environment that has these regions; ones that no wave names come last, together."""
        named = [tuple(region for region in wave if region in regions) for wave in self.waves]
        rest = tuple(region for region in regions if not any(region in wave for wave in self.waves))
        return tuple(wave for wave in (*named, rest) if wave)


class Plan(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: Annotated[dict[str, Step], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_chain(self) -> Plan:
        firsts = [name for name, step in self.environment.items() if step.follows is None]
        if len(firsts) != 1:
            raise ValueError(f"one environment must follow none, these do: {', '.join(firsts) or 'none'}")
        followed = [step.follows for step in self.environment.values() if step.follows]
        unknown = sorted(set(followed) - set(self.environment))
        if unknown or len(followed) != len(set(followed)):
            raise ValueError(f"environments must form one chain; followed are: {', '.join(followed)}")
        return self

    def order(self) -> tuple[str, ...]:
        """The environments, first to last."""
        after = {step.follows: name for name, step in self.environment.items()}
        chain, at = [], after.get(None)
        while at is not None and at not in chain:
            chain.append(at)
            at = after.get(at)
        return tuple(chain)


def parse(text: str, source: str = FILE) -> Plan:
    """The plan in `text`; CiError names `source` and every wrong key."""
    try:
        return Plan.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise CiError(f"{source}: {error}") from error
    except ValidationError as error:
        problems = [
            f"{source}: {'.'.join(map(str, item['loc'])) or 'environment'}: {item['msg']}"
            for item in error.errors()
        ]
        raise CiError("\n".join(problems)) from error
