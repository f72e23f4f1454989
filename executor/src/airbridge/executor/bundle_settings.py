"""Parts of the settings that concern bundles: the parsing of their code, and their environments.

A process that parses or builds need not have the other settings.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from airbridge.executor.setting_values import SECTION, Machine, Sandbox, read
from airbridge.executor.settings import Settings


@dataclass(frozen=True)
class ParseSettings:
    """The part of `Settings` that governs the parsing of DAG code in the control plane."""

    required: bool
    environment: tuple[str, ...]
    variables: tuple[str, ...]
    connections: tuple[str, ...]
    trigger_classes: tuple[str, ...]


def load_parsing() -> ParseSettings:
    """Read how DAG code is parsed, from Airflow's configuration, which need not have the other settings."""
    names = ("sandbox", "parse_environment", "parse_variables", "parse_connections", "trigger_classes")
    sandbox, *patterns = _load_some(names)
    environment, variables, connections, trigger_classes = (each or () for each in patterns)
    return ParseSettings(sandbox is Sandbox.REQUIRE, environment, variables, connections, trigger_classes)


@dataclass(frozen=True)
class PackageSettings:
    """The part of `Settings` that governs the environments of bundles."""

    enabled: bool = True
    index: str = "https://pypi.org/simple"
    find_links: str | None = None
    netrc: Path | None = None
    sdists: bool = False
    machines: tuple[Machine, ...] | None = None
    seconds: float = 300.0
    max_mb: float = 768.0
    #: Whether a host that cannot confine the build fails it.
    required: bool = False


def load_packages() -> PackageSettings:
    """Read how environments are built, from Airflow's configuration, which need not have the other settings."""
    suffixes = ("index", "find_links", "netrc", "sdists", "machines", "seconds", "max_mb")
    sandbox, enabled, *values = _load_some(("sandbox", "packages", *(f"package_{each}" for each in suffixes)))
    chosen = dict(zip(suffixes, values, strict=True))
    return PackageSettings(enabled=enabled, required=sandbox is Sandbox.REQUIRE, **chosen)


def _load_some(names: tuple[str, ...]) -> list[Any]:
    """Read these options alone."""
    from airbridge.executor._airflow import airflow_option

    hints = get_type_hints(Settings)
    options = {each.name: each for each in fields(Settings) if each.name in names}
    return [read(options[name], hints[name], airflow_option(SECTION, name)) for name in names]
