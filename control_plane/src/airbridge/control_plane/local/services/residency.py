"""Residency on a local platform: settings of regions and pools that a user's file adds to the region catalogue."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError

_OF_REGION: Final = frozenset({"residency", "xcom_inline_bytes", "xcom_preview_bytes", "triggers"})
_OF_POOL: Final = frozenset({"xcom_inline_bytes", "secrets_backend", "secrets_backend_kwargs", "triggers"})


def with_residency(catalogue: str, file: Path | None) -> str:
    """Return a catalogue with the settings of `file`. Raises `ConfigurationError`, which names the file.

    The file has ``[[region]]`` and ``[[region.pool]]`` entries, with a name and settings of residency alone.
    """
    if file is None:
        return catalogue
    try:
        added = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"--residency {file}: {error}") from error
    given = dict(_settings(added, file))
    joined = "\n".join(_lines(catalogue, given))
    if given:
        names = ", ".join("@".join(filter(None, reversed(place))) for place in given)
        raise ConfigurationError(f"--residency {file}: the catalogue has no {names}")
    Catalogue.parse(joined, source=f"--residency {file}")
    return joined


def _settings(added: Mapping[str, Any], file: Path) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Yield the settings of each region (its pool is empty) and each pool."""
    for region in added.get("region", []):
        name, pools = region.pop("name", ""), region.pop("pool", [])
        for where, values, known in (
            ("", region, _OF_REGION),
            *((pool.pop("name", "default"), pool, _OF_POOL) for pool in pools),
        ):
            if not values.keys() <= known:
                raise ConfigurationError(
                    f"--residency {file}: {', '.join(sorted(values.keys() - known))}; it may have {', '.join(sorted(known))}"
                )
            yield (name, where), values


def _lines(catalogue: str, given: dict[tuple[str, str], dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a catalogue; what is written after a name is taken out of `given`."""
    region, table = "", ""
    for line in catalogue.splitlines():
        yield line
        if line.startswith("[["):
            table = line
        elif line.startswith("name = "):
            name = json.loads(line.removeprefix("name = "))
            region = name if table == "[[region]]" else region
            place = (region, name if table == "[[region.pool]]" else "")
            for key, value in given.pop(place, {}).items():
                yield f"{key} = {_toml(value)}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {json.dumps(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)
