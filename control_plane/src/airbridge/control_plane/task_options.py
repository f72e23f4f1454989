"""Options of this process's Airflow configuration that the gateway delivers to workers, for their tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import structlog

from airbridge.core.exceptions import ConfigurationError
from airbridge.core.task_options import Options, concerns_tasks, select, why_refused
from airbridge.executor import _airflow

# Section of options that only tasks on workers have, named `<section>__<option>`.
SECTION: Final = "airbridge_tasks"

log = structlog.get_logger()


def load(withheld: Collection[str] = ()) -> Options:
    """Return what tasks see, and log what they do not though it concerns them. Raises `ConfigurationError`."""
    given = _airflow.options_given(
        lambda section, option: section == SECTION or concerns_tasks(section, option)
    )
    named = _named(given.pop(SECTION, {}))
    for section, options in named.items():
        for option in options:
            given.get(section, {}).pop(option, None)
    chosen, refused = select(given, _airflow.sensitive_options(), withheld)
    for section, options in named.items():
        chosen.setdefault(section, {}).update(options)
    if refused:
        log.warning(
            "task_options.not_delivered",
            options=refused,
            remedy=f"name an option in [{SECTION}] as <section>__<option> to give it to every task",
        )
    delivered = [f"{section}.{option}" for section, options in chosen.items() for option in options]
    log.info("task_options.delivered", options=sorted(delivered))
    return chosen


def _named(values: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the options that the operator gives to tasks alone. Raises `ConfigurationError`."""
    found: dict[str, dict[str, str]] = {}
    for name, value in values.items():
        section, separator, option = name.partition("__")
        if not separator:
            raise ConfigurationError(
                f"[{SECTION}] {name} names no section; it must be <section>__<option>, for example "
                "core__allowed_deserialization_classes"
            )
        why = why_refused(section, option)
        if why is not None:
            raise ConfigurationError(
                f"[{SECTION}] {name}: tasks cannot be given [{section}] {option}, because {why}; remove it"
            )
        found.setdefault(section, {})[option] = value
    return found
