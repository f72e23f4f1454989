"""Environment of DAG code on the local platform's workers: the platform's own variables and the user's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from airbridge.core.exceptions import ConfigurationError

VARIABLE: Final = "AIRBRIDGE_WORKER_TASK_ENV"


def given(worker_env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for tasks that the user has given. Raises `ConfigurationError`."""
    text = worker_env.get(VARIABLE, "{}")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigurationError(
            f"{VARIABLE} is not JSON: {error}; it must be a JSON object of text"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ConfigurationError(f"{VARIABLE} is {text!r}; it must be a JSON object of text")
    return found


def merged(own: Mapping[str, str], worker_env: Mapping[str, str]) -> str:
    """Return the variable's value: the platform's variables, and the user's, which win."""
    return json.dumps({**own, **given(worker_env)})


def overridden(own: Mapping[str, str], worker_env: Mapping[str, str]) -> list[str]:
    """Return the platform's variables to which the user has given another value."""
    return sorted(name for name, value in given(worker_env).items() if name in own and own[name] != value)
