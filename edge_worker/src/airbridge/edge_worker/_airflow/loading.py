"""Loading and configuration in the zygote, shared by all tasks."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import structlog
from airflow.models import dagbag, import_all_models
from airflow.plugins_manager import integrate_listener_plugins, integrate_macros_plugins
from airflow.sdk.execution_time import context, supervisor, task_runner
from airflow.sdk.log import configure_logging, logging_processors
from airflow.utils.platform import getuser
from sqlalchemy.orm import configure_mappers

from airbridge.edge_worker._airflow import masking
from airbridge.edge_worker._airflow.parsing import DagBagSignals
from airbridge.edge_worker.runner import airflow_home
from airbridge.edge_worker.runner.log_channel import LogChannel

# Packages of which every module is loaded before the first fork.
FAMILIES: Final = (
    "airflow.providers.standard.decorators",
    "airflow.providers.standard.operators",
    "airflow.providers.standard.sensors",
    "airflow.providers.standard.triggers",
)

# Modules that the Task SDK imports only when a task runs, besides those that the warm-up imports.
IMPORTED_LATE: Final = (
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.execution_time.macros",
    "airflow.serialization.serialized_objects",
    "airflow.utils.email",
    "jinja2.ext",
)

# Stream that logging writes to; configured once, in the zygote: the SDK would do it anew in every task.
LOG_CHANNEL: Final = LogChannel(2)

_worker = [""]


def hostname() -> str:
    """Return the worker's name: what ``[core] hostname_callable`` calls, so that no task looks up a name."""
    return _worker[0]


def preload(worker_name: str, wanted: Iterable[str] = ()) -> None:
    """Load and set up all that every task needs, and the modules that are wanted besides, before the first fork."""
    _worker[0] = worker_name
    for name in airflow_home.WITHOUT_ORM:
        os.environ.pop(name, None)
    for module in _modules_of(FAMILIES):
        with suppress(Exception):  # an extra that is not installed, or what needs a later Airflow
            importlib.import_module(module)
    for module in (*IMPORTED_LATE, *wanted):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - a module may raise anything at import; tasks that need it will fail with the error
            structlog.get_logger().warning("runner.not_preloaded", module=module, error=repr(error))
    import_all_models()  # a task may use airflow.models.Connection, which works only once its relatives are known
    configure_mappers()
    logging_processors(enable_pretty_log=False)
    configure_logging(enable_pretty_log=False, output=LOG_CHANNEL, sending_to_supervisor=True)
    masking.mask_in_tasks()
    context._get_connection = masking.masking(context._get_connection)  # noqa: SLF001 - set once, for all tasks
    supervisor._configure_logs_over_json_channel = LOG_CHANNEL.redirect  # noqa: SLF001 - set once, for all tasks
    # Airflow's mail names this URL, which Airflow 3.0.4 left out: no mail could be written. Later versions have the log's.
    task_runner.RuntimeTaskInstance.mark_success_url = property(lambda ti: ti.log_url)
    # See `DagBagSignals`.
    dagbag.signal = DagBagSignals()
    integrate_macros_plugins()
    integrate_listener_plugins(task_runner.get_listener_manager())
    supervisor.ensure_secrets_backend_loaded()
    # Once for all: it sets module attributes and the environment, which a fork inherits.
    supervisor.block_orm_access()
    supervisor.block_orm_access = _blocked_already
    with suppress(Exception):
        getuser()


def _blocked_already() -> None:
    """Stand in for `supervisor.block_orm_access` in every task: done in the zygote, it holds for all that is forked."""


def _modules_of(packages: Iterable[str]) -> Iterator[str]:
    for package in packages:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            yield module.name
