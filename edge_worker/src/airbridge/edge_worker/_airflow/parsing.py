"""Parsing of a DAG file, as the Task SDK does it, in a task or ahead of any."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from airflow.dag_processing.bundles.base import BaseDagBundle
from airflow.models import dagbag
from airflow.sdk.execution_time import supervisor, task_runner

from airbridge.edge_worker.runner.messages import Source


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


class SignalsOfDagBag:
    """The signal module as DagBag is to see it.

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
    if source.bundle_path not in sys.path:
        sys.path.append(source.bundle_path)
    path = Path(source.bundle_path, source.dag_rel_path)
    bag = dagbag.DagBag(
        dag_folder=os.fspath(path), include_examples=False, safe_mode=False, load_op_links=False
    )
    return ParsedFile(bag.dags, bag.import_errors)


def log_output(channel: str, lines: Iterable[str]) -> None:
    """Log what was printed, as the Task SDK's supervisor does."""
    log = structlog.get_logger(logger_name="task")
    for line in lines:
        (log.error if channel == "stderr" else log.info)(line, chan=channel)


class NoSupervisorError(RuntimeError):
    """The DAG file asks for something of the control plane while it is parsed ahead of any task."""


class _NoSupervisor:
    """Stands in for the Task SDK's channel to the supervisor in a template."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def send(self, msg: object) -> object:
        """Refuse."""
        self._note(f"asks the control plane for something at import ({type(msg).__name__})")
        raise NoSupervisorError(f"{type(msg).__name__} cannot be answered before a task runs")


@contextmanager
def parsing_ahead(note: Callable[[str], None]) -> Iterator[None]:
    """Have everything noted that a parse asks of the control plane or of a secrets backend."""
    load = supervisor.ensure_secrets_backend_loaded

    def noting() -> list[Any]:
        backends: list[Any] = load()
        if any(type(backend).__name__ != "EnvironmentVariablesBackend" for backend in backends):
            note("reads a variable or connection at import")
        return backends

    task_runner.SUPERVISOR_COMMS = _NoSupervisor(note)
    supervisor.ensure_secrets_backend_loaded = noting
    try:
        yield
    finally:
        supervisor.ensure_secrets_backend_loaded = load
        del task_runner.SUPERVISOR_COMMS
