"""Providers and plugins among a bundle's packages, registered as Airflow registers installed ones.

Airflow finds both by entry points, once in a process. The zygote has done that, without the bundle's packages.
"""

from __future__ import annotations

from importlib import metadata
from typing import Final

from airflow import io, plugins_manager
from airflow.providers_manager import ProvidersManager
from airflow.sdk.execution_time import task_runner
from airflow.utils import entry_points

_PROVIDERS: Final = "apache_airflow_provider"
_PLUGINS: Final = "airflow.plugins"


def register(packages: str) -> None:
    """Register the providers and plugins in a directory of packages that is on `sys.path`.

    A plugin that cannot be loaded is logged by Airflow and left out, as an installed one is.
    """
    # Added to what Airflow has found: looking again would read every directory on the path.
    found = entry_points._get_grouped_entry_points()  # noqa: SLF001 - Airflow has no other way to add
    groups = set()
    for distribution in metadata.distributions(path=[packages]):
        for point in distribution.entry_points:
            found[point.group].append((point, distribution))
            groups.add(point.group)
    if _PROVIDERS in groups:
        ProvidersManager()._cleanup()  # noqa: SLF001 - initialised anew when a task asks
        io._register_filesystems.cache_clear()  # noqa: SLF001 - as above
    if _PLUGINS in groups:
        _load_plugins()


def _load_plugins() -> None:
    plugins_manager.ensure_plugins_loaded()
    plugins_manager.load_entrypoint_plugins()
    plugins_manager.macros_modules = None
    plugins_manager.integrate_macros_plugins()
    # What is registered already is not added twice.
    plugins_manager.integrate_listener_plugins(task_runner.get_listener_manager())
