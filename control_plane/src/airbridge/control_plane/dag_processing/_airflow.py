"""Airflow internals (3.0.4) that the dag-processor uses; tested by tests/integration/dag_processing/test_sandboxed_parsing.py.

Airflow forks the process that parses a DAG file from the dag-processor itself, so that DAG code finds the database URL, the
Fernet key and every open file descriptor in its memory. `install` has `DagFileProcessorManager` use a subclass instead, whose
processes come from a zygote that never had them, and which judges what comes back.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Final

import structlog

from airbridge.control_plane.dag_processing import file_names
from airbridge.control_plane.dag_processing.serialized_dags import SerializedDagCheck
from airbridge.control_plane.dag_processing.zygote_client import ZygoteClient
from airbridge.executor import param_patterns
from airbridge.executor._airflow import taken_dag_ids
from airbridge.executor.bundles.check import taken_error

log = structlog.get_logger(__name__)

_PRELOADED: Final = ("airflow.providers.", "airflow.sdk", "airflow.decorators", "airflow.models", "airflow.operators",
                     "airflow.sensors", "airflow.timetables", "airflow.utils", "airflow.exceptions")  # fmt: skip
_FILE_BYTES: Final = 1024 * 1024
# Before the names of DAG files' modules, with a digest of the file's path (`get_unique_dag_module_name`).
_MODULE: Final = re.compile(r"unusual_prefix_[0-9a-f]{40}_")
_PATH: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)


# --- In the zygote and its processes --------------------------------------------------------------


def load_parser() -> None:
    """Import what parses a DAG file."""
    from airflow.dag_processing import processor  # noqa: F401
    from airflow.sdk.execution_time import comms, task_runner  # noqa: F401


def preload(file: str) -> None:
    """Import Airflow's modules that a DAG file imports, as `processor._pre_import_airflow_modules` does."""
    from airflow.utils.file import iter_airflow_imports

    path = Path(file)
    if not path.is_file() or path.stat().st_size > _FILE_BYTES:
        return
    for module in iter_airflow_imports(file):
        if module.startswith(_PRELOADED):
            importlib.import_module(module)


def be_parser(sockets: Sequence[socket.socket], log_fd: int) -> None:
    """Be the process that Airflow forks for a file: talk to its supervisor over these descriptors. Does not return."""
    from airflow.dag_processing.processor import _parse_file_entrypoint
    from airflow.sdk.execution_time.supervisor import _fork_main

    requests, stdout, stderr = sockets
    _fork_main(requests, stdout, stderr, log_fd, _parse_file_entrypoint)


# --- What a serialised DAG names ---------------------------------------------------------------------


@cache
def is_timetable(path: str) -> bool:
    """Return whether a path is that of a timetable of Airflow's or of a plugin's."""
    from airflow.serialization.serialized_objects import _get_registered_timetable
    from airflow.timetables.base import Timetable

    if not _PATH.fullmatch(path):
        return False
    try:
        found = _get_registered_timetable(path)
    except (ImportError, AttributeError):
        return False
    return isinstance(found, type) and Timetable in found.__mro__  # a protocol: issubclass does not take it


@cache
def shadows_method(key: str) -> bool:
    """Return whether an operator's or DAG's field of this name would take the place of a method, or of its dependencies."""
    from airflow.serialization.serialized_objects import SerializedBaseOperator, SerializedDAG

    fields = {*SerializedBaseOperator.get_serialized_fields(), *SerializedDAG.get_serialized_fields()}
    classes = (SerializedBaseOperator, SerializedDAG)
    methods = any(callable(getattr(each, key, None)) for each in classes)
    return key == "deps" or (methods and key not in fields)


def decode(dag: Any) -> None:
    """Decode a `LazyDeserializedDAG` as the scheduler will. Raises whatever Airflow does for a DAG that it cannot decode.

    Airflow decodes each DAG before it stores it in any case, and uses what was decoded here.
    """
    from airflow.utils.dag_cycle_tester import check_cycle

    dag._real_dag.timetable.validate()  # noqa: SLF001  # as below
    check_cycle(dag._real_dag)  # noqa: SLF001  # Airflow publishes no other name of what it keeps decoded


# --- In the dag-processor ---------------------------------------------------------------------------


def file_timeout_seconds() -> int:
    """Return how long Airflow lets a file be parsed."""
    from airflow.configuration import conf

    return int(conf.getint("dag_processor", "dag_file_processor_timeout"))


def install(
    zygote: ZygoteClient, variables: Sequence[str], connections: Sequence[str], check: SerializedDagCheck
) -> None:
    """Make the dag-processor parse with `zygote`; the patterns name what DAG files may read while they are parsed."""
    from airflow.dag_processing import manager

    from airbridge.control_plane.dag_processing.sandboxed_processor import Rules, processor_class

    param_patterns.install()
    manager.DagFileProcessorProcess = processor_class(zygote, Rules(variables, connections, check))
    manager.process_parse_results = storing_each(manager.process_parse_results)
    parse_current_files()
    keep_callbacks()


def storing_each(store: Callable[..., Any]) -> Callable[..., Any]:
    """Return Airflow's `process_parse_results`, in a transaction for each file, with an import error for what cannot be stored.

    As it is, an exception for one file ends the dag-processor, again after each restart. A file of another version than the one that
    its DAGs would be recorded under is not stored, and parsed again.
    """
    from airflow.dag_processing.manager import DagFileStat
    from airflow.dag_processing.processor import DagFileParsingResult

    from airbridge.control_plane.gateway.database import transient

    def process_parse_results(*, parsing_result: Any, session: Any, **kwargs: Any) -> Any:
        if _is_superseded(parsing_result, kwargs["bundle_name"], kwargs["bundle_version"]):
            log.info(
                "dag_processing.superseded", file=parsing_result.fileloc, version=kwargs["bundle_version"]
            )
            # Without the time of a parse, the file is due again at once.
            return DagFileStat(run_count=kwargs["run_count"])
        try:
            stat = store(parsing_result=parsing_result, session=session, **kwargs)
            session.commit()
        except Exception as error:
            session.rollback()
            if parsing_result is None or transient(error):
                raise
            file, why = parsing_result.fileloc, f"{type(error).__name__}: {error}"[:1000].replace("\0", "")
            log.warning("dag_processing.not_stored", file=file, error=why)
            text = f"the DAGs of this file cannot be stored: {why}".encode(errors="replace").decode()
            refused = DagFileParsingResult(fileloc=file, serialized_dags=[], import_errors={file: text})
            stat = store(parsing_result=refused, session=session, **kwargs)
            session.commit()
        return stat

    return process_parse_results


def _is_superseded(result: Any, bundle: str, version: str | None) -> bool:
    """Return whether a file was parsed in the directory of another version of its bundle."""
    folder = _versions_folder(bundle)
    if result is None or version is None or not Path(result.fileloc).is_relative_to(folder):
        return False
    return not Path(result.fileloc).is_relative_to(folder / version)


def _versions_folder(bundle: str) -> Path:
    """Return the directory that holds those of a bundle's versions."""
    from airflow.dag_processing.bundles.base import get_bundle_versions_base_folder

    folder: Path = get_bundle_versions_base_folder(bundle)
    return folder


def parse_current_files() -> None:
    """Have the dag-processor parse each queued file in the directory of its bundle's current version.

    Airflow 3.0.4 leaves a queued file in the directory that it was found in: for it, a file is the same in each.
    """
    from airflow.dag_processing import manager

    processor = manager.DagFileProcessorManager
    original = processor._create_process  # noqa: SLF001
    if getattr(original, "airbridge_current_files", False):
        return

    def create_process(self: Any, dag_file: Any) -> Any:
        return original(self, _in_current(dag_file, self._bundle_versions))

    create_process.airbridge_current_files = True  # type: ignore[attr-defined] # a mark, so that it is done once
    processor._create_process = create_process  # noqa: SLF001


class _Versions(dict[str, str | None]):
    """Versions by bundle; that of a bundle which was never refreshed is None."""

    def __missing__(self, bundle: str) -> None:
        return None


def keep_callbacks() -> None:
    """Have the dag-processor run each callback to its end, whatever becomes of its bundle.

    Airflow 3.0.4 takes the file of a callback that names a version for one that is gone, at each new version of any bundle: a queued one
    is dropped, and a running one killed. It ends with a `KeyError` at a callback of a bundle that could not be refreshed once.
    """
    from airflow.dag_processing import manager

    processor = manager.DagFileProcessorManager
    handle, collect = processor.handle_removed_files, processor._collect_results  # noqa: SLF001
    if getattr(handle, "airbridge_keeps_callbacks", False):
        return

    def handle_removed_files(self: Any, known_files: Mapping[str, Any]) -> None:
        of_callbacks = {
            file for file in (*self._file_queue, *self._processors) if file.bundle_version is not None
        }
        # Under a name that no bundle has.
        handle(self, {**known_files, "": of_callbacks})

    def collect_results(self: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(self._bundle_versions, _Versions):
            self._bundle_versions = _Versions(self._bundle_versions)
        collect(self, *args, **kwargs)

    handle_removed_files.airbridge_keeps_callbacks = True  # type: ignore[attr-defined] # a mark, so that it is done once
    processor.handle_removed_files = handle_removed_files
    processor._collect_results = collect_results  # noqa: SLF001


def _in_current(dag_file: Any, versions: Mapping[str, str | None]) -> Any:
    """Return a `DagFileInfo` in the directory of its bundle's current version; that of a callback stays in its run's."""
    current, folder = versions.get(dag_file.bundle_name), _versions_folder(dag_file.bundle_name)
    if current is None or dag_file.bundle_version is not None or dag_file.bundle_path is None:
        return dag_file
    if dag_file.bundle_path.parent != folder:
        return dag_file
    return replace(dag_file, bundle_path=folder / current)


def name_own_files() -> None:
    """Have Airflow keep import errors under the author's file names.

    Airflow 3.0.4 keeps them under the absolute path in the directory of the version, which changes with each version and is not
    on the author's machine. Its own paths are passed on, too, because it finds a DAG's file and a former error by them.
    """
    from airflow.dag_processing import collection

    original = collection._update_import_errors  # noqa: SLF001
    if getattr(original, "airbridge_own_names", False):
        return

    def update(files_parsed: set[str], bundle_name: str, import_errors: dict[str, str], session: Any) -> None:
        parsed = {*files_parsed, *map(file_names.own, files_parsed)}
        original(parsed, bundle_name, file_names.own_errors(import_errors), session)

    update.airbridge_own_names = True  # type: ignore[attr-defined] # a mark, so that it is done once
    collection._update_import_errors = update  # noqa: SLF001


def refuse_taken_ids() -> None:
    """Have Airflow refuse a DAG whose id another bundle defines: the second is an import error, the first stays.

    Airflow 3.0.4 stores both in turn, so that the DAG alternates between two codes.
    """
    from airflow.dag_processing import manager

    original = manager.update_dag_parsing_results_in_db
    if getattr(original, "airbridge_unique_ids", False):
        return

    def update(
        *, bundle_name: str, dags: Collection[Any], import_errors: dict[str, str], session: Any, **others: Any
    ) -> None:
        taken = taken_dag_ids(session, bundle_name, [dag.dag_id for dag in dags])
        errors = dict(import_errors)
        for dag in dags:
            if dag.dag_id in taken:
                error = taken_error(dag.dag_id, taken[dag.dag_id])
                errors[dag.fileloc] = "\n".join(filter(None, (errors.get(dag.fileloc), error)))
        kept = [dag for dag in dags if dag.dag_id not in taken]
        original(bundle_name=bundle_name, dags=kept, import_errors=errors, session=session, **others)

    update.airbridge_unique_ids = True  # type: ignore[attr-defined] # a mark, so that it is done once
    manager.update_dag_parsing_results_in_db = update


def version_dags_by_content() -> None:
    """Have Airflow give a DAG a new version when the DAG or its file changes, not with each version of its bundle.

    Airflow 3.0.4 hashes a DAG with the absolute path of its file, which is in the directory of the bundle's version, and with the
    names of modules, which contain that path's digest. The path within the bundle and the file's text are hashed in their place: the UI shows one
    text for each version of a DAG.
    """
    from airflow.models.serialized_dag import SerializedDagModel

    original = SerializedDagModel.hash
    if getattr(original, "airbridge_by_content", False):
        return

    def by_content(dag_data: Mapping[str, Any]) -> str:
        fileloc = dag_data["dag"]["fileloc"]
        own = file_names.own(fileloc)
        if own == fileloc:  # of another kind of bundle
            return str(original(dag_data))
        content: dict[str, Any] = json.loads(_MODULE.sub("", json.dumps(dag_data)))
        content["dag"]["fileloc"] = f"{own} {_source_digest(fileloc)}"
        return str(original(content))

    by_content.airbridge_by_content = True  # type: ignore[attr-defined] # a mark, so that it is done once
    SerializedDagModel.hash = staticmethod(by_content)


# Of many DAGs in one file, each asks for it.
@lru_cache(maxsize=32)
def _source_digest(fileloc: str) -> str:
    """Return the digest of a DAG file's text, as Airflow keeps it. A file of an unpacked snapshot never changes."""
    from airflow.models.dagcode import DagCode

    return hashlib.sha256(DagCode.get_code_from_file(fileloc).encode()).hexdigest()


def run(arguments: Sequence[str]) -> None:
    """Run ``airflow dag-processor`` in this process."""
    from airflow.cli.cli_parser import get_parser

    parsed = get_parser().parse_args(["dag-processor", *arguments])
    parsed.func(parsed)
