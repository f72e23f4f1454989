"""Packages of the platform: the versions that every environment is locked under, and those that every task process has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata
from typing import Final

from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

# What a worker is installed with (edge_worker/pyproject.toml), and what these require. A control plane has more.
WORKER_ROOTS: Final = (
    "airbridge-core",
    "apache-airflow",
    "apache-airflow-providers-standard",
    "apache-airflow-task-sdk",
    "attrs",
    "boto3",
    "cryptography",
    "httpx",
    "msgspec",
    "prometheus-client",
    "psutil",
    "pydantic",
    "pydantic-settings",
    "setproctitle",
    "sqlalchemy",
    "structlog",
    "typer",
)


@cache
def installed() -> dict[str, str]:
    """Return the version of each package that is installed here, by normalised name."""
    return {
        str(canonicalize_name(found.name)): found.version for found in metadata.distributions() if found.name
    }


@cache
def on_workers(roots: tuple[str, ...] = WORKER_ROOTS) -> frozenset[str]:
    """Return the normalised names of the packages that a worker has: of those installed here, the roots and what they need."""
    seen: set[tuple[str, frozenset[str]]] = set()
    pending = [(str(canonicalize_name(root)), frozenset[str]()) for root in roots]
    present: set[str] = set()
    while pending:
        name, extras = step = pending.pop()
        if step in seen:
            continue
        seen.add(step)
        try:
            wanted = metadata.requires(name) or ()
        except metadata.PackageNotFoundError:
            continue
        present.add(name)
        pending += _needed(wanted, extras)
    return frozenset(present)


def _needed(wanted: Iterable[str], extras: frozenset[str]) -> Iterator[tuple[str, frozenset[str]]]:
    for text in wanted:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        marker = requirement.marker
        environment: dict[str, str] = {key: str(value) for key, value in default_environment().items()}
        if marker is None or any(
            marker.evaluate({**environment, "extra": extra}) for extra in (extras or {""})
        ):
            yield str(canonicalize_name(requirement.name)), frozenset(requirement.extras)
