"""Findings of checks, and the account that checks look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from airbridge.infra.environment import Environment


class Outcome(StrEnum):
    """Outcome of a check. `later`: what it looks at is made by a step that has not run. `unknown`: AWS did not answer."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"
    LATER = "later"


@dataclass(frozen=True)
class Finding:
    """One line of the report: the check, what it looked at, and how to put it right."""

    check: str
    subject: str
    outcome: Outcome
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Account:
    """An environment, and ways to look at the account that it is to be deployed in.

    `client` makes a boto3 client of a service in a region; `resolves` tells whether a host's name has an address.
    """

    environment: Environment
    client: Callable[[str, str], Any]
    resolves: Callable[[str], bool]
    now: Callable[[], datetime]

    @property
    def home(self) -> str:
        """The home region."""
        return self.environment.home_region

    @property
    def regions(self) -> tuple[str, ...]:
        """Every region, the home region first."""
        others = sorted({region.name for region in self.environment.regions} - {self.home})
        return (self.home, *others)

    def owns(self, resource: Any) -> bool:
        """Return whether a resource has the tag of this environment, which a deployment that was begun gives to all that takes tags."""
        tags = {tag["Key"]: tag["Value"] for tag in resource.get("Tags", ())}
        return tags.get("airbridge:environment") == self.environment.name


Check = Callable[[Account], Iterator[Finding]]


def ok(check: str, subject: str, detail: str) -> Finding:
    """Return a check's finding that nothing is wrong."""
    return Finding(check, subject, Outcome.OK, detail)


def failed(check: str, subject: str, detail: str, remedy: str) -> Finding:
    """Return the finding that a deployment would fail, with what to do first."""
    return Finding(check, subject, Outcome.FAILED, detail, remedy)


def later(check: str, subject: str, detail: str, remedy: str) -> Finding:
    """Return the finding that a check has nothing to look at yet."""
    return Finding(check, subject, Outcome.LATER, detail, remedy)
