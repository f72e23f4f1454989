"""Persons behind a deployment: who started the workflow's run, and who approved it, as GitHub has recorded them.

GitHub's environments let a run go on after one approval, and its setting against self-review can be switched off by an administrator. So
the pipeline counts for itself, before it promotes or deploys anything.

Source: "Get the review history for a workflow run", https://docs.github.com/en/rest/actions/workflow-runs (from memory; not reached).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from airbridge.ci.exceptions import ControlPlaneError, PromotionRefused

_TIMEOUT_SECONDS = 30.0


class _Named(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: str


class _User(BaseModel):
    model_config = ConfigDict(extra="ignore")

    login: str


class _Review(BaseModel):
    """One review of a run; it is of one or more environments."""

    model_config = ConfigDict(extra="ignore")

    state: str
    environments: tuple[_Named, ...] = ()
    user: _User


_REVIEWS = TypeAdapter(tuple[_Review, ...])


@dataclass(frozen=True)
class Run:
    """A workflow's run, in whose job this is. `starters` are those who started and who repeated it."""

    url: str
    starters: frozenset[str]
    token: str = field(repr=False)

    @classmethod
    def current(cls, environ: Mapping[str, str] = os.environ) -> Run:
        """Return the run that the runner's variables name; PromotionRefused if one is missing."""
        needed = ("GITHUB_API_URL", "GITHUB_REPOSITORY", "GITHUB_RUN_ID", "GITHUB_ACTOR", "GITHUB_TOKEN")
        if missing := [name for name in needed if not environ.get(name)]:
            raise PromotionRefused(
                f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: approvals are those of a workflow's run; "
                "run this in the job, with GITHUB_TOKEN from github.token"
            )
        api, repository, run_id, actor, token = (environ[name] for name in needed)
        repeated = environ.get("GITHUB_TRIGGERING_ACTOR") or actor
        return cls(f"{api}/repos/{repository}/actions/runs/{run_id}", frozenset({actor, repeated}), token)

    def approvers(self, environment: str) -> frozenset[str]:
        """Return who approved the run for an environment, without who started it; ControlPlaneError if GitHub does not answer.

        A person's last review counts: GitHub lists them with the newest first.
        """
        last: dict[str, str] = {}
        for review in self._reviews():
            if environment in {each.name for each in review.environments}:
                last.setdefault(review.user.login, review.state)
        return frozenset(login for login, state in last.items() if state == "approved") - self.starters

    def _reviews(self) -> tuple[_Review, ...]:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/vnd.github+json"}
        url = f"{self.url}/approvals"
        try:
            answer = httpx.get(url, headers=headers, timeout=_TIMEOUT_SECONDS)
            answer.raise_for_status()
            return _REVIEWS.validate_json(answer.content)
        except (httpx.HTTPError, ValidationError) as error:
            raise ControlPlaneError(f"{url}: {error}; the job needs the permission actions: read") from error


def require(persons: int, environment: str, run: Run) -> frozenset[str]:
    """Return the persons behind a run for an environment; PromotionRefused if they are too few."""
    found = run.starters | run.approvers(environment)
    if len(found) < persons:
        raise PromotionRefused(
            f"{environment} needs {persons} persons, and behind this run is {' and '.join(sorted(found))}: let another of the "
            f"environment's reviewers approve it (persons of ci/rollout.toml)"
        )
    return found
