"""Parsing of a DAG file, as the Task SDK does it, in a task or ahead of any."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog
from airflow import settings
from airflow.dag_processing.bundles.base import BaseDagBundle
from airflow.models import dagbag
from airflow.providers.standard.operators import python
from airflow.sdk.execution_time import supervisor, task_runner
from airflow.utils.file import get_unique_dag_module_name

from airbridge.core.code import environment
from airbridge.edge_worker._airflow import discovery
from airbridge.edge_worker.runner.messages import Source

_DAGS_FOLDER: Final = "AIRFLOW__CORE__DAGS_FOLDER"
_own_dags_folder: list[str] = []

# Directory of the bundle's packages, for processes that a task starts: ``PYTHONPATH=$AIRBRIDGE_PACKAGES``.
_PACKAGES: Final = "AIRBRIDGE_PACKAGES"

_UNIQUE_NAME: Final = get_unique_dag_module_name


class SnapshotBundle(BaseDagBundle):  # type: ignore[misc] # Airflow publishes no types
    """The DAG code of one digest, unpacked by the agent and never changed."""

    supports_versioning = True

    def __init__(self, source: Source) -> None:
        super().__init__(name=source.bundle_name, version=source.bundle_version)
        self._path = Path(source.bundle_path)
        self.is_initialized = True

    @property
    def path(self) -> Path:
        """Return the snapshot's root."""
        return self._path

    def get_current_version(self) -> str | None:
        """Return the digest."""
        return str(self.version)

    def refresh(self) -> None:
        """Do nothing: another content would have another digest."""


class DagBagSignals:
    """Replacement for the signal module in DagBag.

    DagBag handles SIGSEGV in Python, which a real segmentation fault never reaches: it is raised again for ever.
    """

    SIGSEGV = signal.SIGSEGV

    def signal(self, number: int, handler: object) -> None:
        """Leave the signal as it is."""


@dataclass(frozen=True)
class ParsedFile:
    """The DAGs of a file, by id, and why it could not be imported if it could not."""

    dags: Mapping[str, Any]
    errors: Mapping[str, str]


def parse(source: Source) -> ParsedFile:
    """Import the DAG file as the Task SDK's `task_runner.parse` does. Errors are logged, and returned."""
    add_code_paths(source)
    _set_dags_folder(source.bundle_path)
    _name_modules_of(source)
    path = Path(source.bundle_path, source.dag_rel_path)
    # The arguments of `task_runner.parse`.
    bag = dagbag.DagBag(
        dag_folder=os.fspath(path), include_examples=False, safe_mode=False, load_op_links=False
    )
    return ParsedFile(bag.dags, bag.import_errors)


def add_code_paths(source: Source) -> None:
    """Let this process import from the bundle's root and from its environment."""
    if source.bundle_path not in sys.path:
        sys.path.append(source.bundle_path)
    if source.environment:
        environment.activate(source.environment)
        os.environ[_PACKAGES] = source.environment
        discovery.register(source.environment)


def _set_dags_folder(root: str) -> None:
    """Make the bundle's root the `[core] dags_folder`, unless the worker's operator has set another."""
    if os.environ.get(_DAGS_FOLDER) in (None, *_own_dags_folder):
        os.environ[_DAGS_FOLDER] = settings.DAGS_FOLDER = root
        _own_dags_folder[:] = [root]


def _name_modules_of(source: Source) -> None:
    """Name the modules of DAG files by bundle and path within it, equal on all workers and in all versions.

    Airflow takes the whole path, which contains the version's digest: a class of a DAG file would not be found by the
    name that an XCom has of it.
    """

    def name(path: str) -> str:
        within = os.path.relpath(path, source.bundle_path)
        return _UNIQUE_NAME(f"/{source.bundle_name}/{within}")  # type: ignore[no-any-return] # Airflow publishes no types

    dagbag.get_unique_dag_module_name = name
    # Unpickles what a virtual environment's task returns of the DAG file's own classes.
    python.get_unique_dag_module_name = name


def log_output(channel: str, lines: Iterable[str]) -> None:
    """Log what was printed, as the Task SDK's supervisor does."""
    log = structlog.get_logger(logger_name="task")
    for line in lines:
        (log.error if channel == "stderr" else log.info)(line, chan=channel)


class NoSupervisorError(RuntimeError):
    """The DAG file needs the control plane while it is parsed ahead of any task."""


class _NoSupervisor:
    """Stands in for the Task SDK's channel to the supervisor in a template."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def send(self, msg: object) -> object:
        """Refuse."""
        self._report(f"sends a request to the control plane at import ({type(msg).__name__})")
        raise NoSupervisorError(f"{type(msg).__name__} cannot be answered before a task runs")


@contextmanager
def parsing_ahead(report: Callable[[str], None]) -> Iterator[None]:
    """Report every request of a parse to the control plane or to a secrets backend."""
    load = supervisor.ensure_secrets_backend_loaded

    def reporting() -> list[Any]:
        backends: list[Any] = load()
        if any(type(backend).__name__ != "EnvironmentVariablesBackend" for backend in backends):
            report("reads a variable or connection at import")
        return backends

    task_runner.SUPERVISOR_COMMS = _NoSupervisor(report)
    supervisor.ensure_secrets_backend_loaded = reporting
    try:
        yield
    finally:
        supervisor.ensure_secrets_backend_loaded = load
        del task_runner.SUPERVISOR_COMMS
