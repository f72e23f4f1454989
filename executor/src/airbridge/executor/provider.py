"""Provider description for Airflow: the configuration section and the executor."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from airbridge.executor.setting_values import SECTION
from airbridge.executor.settings import Settings

VERSION_ADDED = "0.1.0"


def get_provider_info() -> dict[str, Any]:
    """Return the provider description for the entry point that Airflow's provider manager loads."""
    return {
        "package-name": "airbridge-executor",
        "name": "AirBridge",
        "description": "Runs tasks on workers far away, near the data.",
        "executors": ["airbridge.executor.executor.EdgeExecutor"],
        "config": {SECTION: {"description": "Settings of AirBridge's control plane.", "options": _options()}},
    }


def _options() -> dict[str, Any]:
    hints = get_type_hints(Settings)
    return {each.name: _option(each, hints[each.name]) for each in fields(Settings)}


def _option(option: Field[Any], kind: Any) -> dict[str, Any]:
    has_default = option.default is not MISSING and option.default is not None
    return {
        "description": option.metadata["description"],
        "version_added": VERSION_ADDED,
        "type": _TYPES.get(kind, "string"),
        "example": option.metadata["example"],
        "default": str(option.default) if has_default else None,
    }


_TYPES: dict[Any, str] = {float: "float", float | None: "float", int: "integer", bool: "boolean"}
