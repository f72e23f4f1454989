"""Every use of Airflow 3.0.4's internals on the edge: `tests/contract/test_task_sdk_internals.py` holds them to account.

Only the runner's processes import this module, after `runner.zygote` has prepared their environment: the agent
never loads Airflow. Importing it loads the Task SDK, which is slow, and which is the point: it happens once.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import UUID

import attrs
import msgspec
import structlog
from airflow.configuration import conf
from airflow.dag_processing.bundles.base import BaseDagBundle
from airflow.listeners.listener import ListenerManager
from airflow.models import dagbag
from airflow.plugins_manager import integrate_listener_plugins, integrate_macros_plugins
from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance, TaskInstanceState, TIRunContext
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.execution_time import supervisor, task_runner
from airflow.sdk.execution_time.comms import (
    CommsDecoder,
    StartupDetails,
    ToTask,
    _RequestFrame,
    _ResponseFrame,
)
from airflow.sdk.execution_time.supervisor import SERVER_TERMINATED, ActivitySubprocess
from airflow.sdk.log import configure_logging, logging_processors
from airflow.utils.platform import getuser
from pydantic import TypeAdapter
from setproctitle import setproctitle

from airbridge.edge_worker.runner import home, process
from airbridge.edge_worker.runner.channel import LogChannel
from airbridge.edge_worker.runner.client import RelayClient
from airbridge.edge_worker.runner.link import Link
from airbridge.edge_worker.runner.messages import Job, Source

FAMILIES: Final = (
    "airflow.providers.standard.decorators",
    "airflow.providers.standard.operators",
    "airflow.providers.standard.sensors",
    "airflow.providers.standard.triggers",
)
"""Packages of which every module is loaded before the first fork."""

IMPORTED_LATE: Final = (
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.execution_time.macros",
    "airflow.serialization.serialized_objects",
    "airflow.utils.email",
    "jinja2.ext",
)
"""Modules that the Task SDK imports only when a task runs, besides those that the rehearsal brings in."""

_TO_TASK: Final = TypeAdapter(ToTask)
"""Built once: the Task SDK builds it anew, twice, in every task."""

LOG_CHANNEL: Final = LogChannel(2)
"""What logging is configured with, once, in the zygote: the SDK would configure it anew in every task."""

_worker = [""]


def hostname() -> str:
    """Return the worker's name: what ``[core] hostname_callable`` calls, so that no task looks up a name."""
    return _worker[0]


def preload(worker_name: str, wanted: Iterable[str] = ()) -> None:
    """Load and set up all that every task needs, and the modules that are wanted besides, before the first fork."""
    _worker[0] = worker_name
    for name in home.WITHOUT_ORM:
        os.environ.pop(name, None)
    for module in _modules_of(FAMILIES):
        with suppress(Exception):  # an extra that is not installed, or what needs a later Airflow
            importlib.import_module(module)
    for module in (*IMPORTED_LATE, *wanted):
        try:
            importlib.import_module(module)
        except Exception as error:  # noqa: BLE001 - whatever a module does at import; tasks that need it will say so
            structlog.get_logger().warning("runner.not_preloaded", module=module, error=repr(error))
    logging_processors(enable_pretty_log=False)
    configure_logging(enable_pretty_log=False, output=LOG_CHANNEL, sending_to_supervisor=True)
    supervisor._configure_logs_over_json_channel = LOG_CHANNEL.point_at  # noqa: SLF001 - set once, for all tasks
    dagbag.signal = _SignalsOfDagBag()
    integrate_macros_plugins()
    integrate_listener_plugins(task_runner.get_listener_manager())
    supervisor.ensure_secrets_backend_loaded()
    with suppress(Exception):
        getuser()


def _modules_of(packages: Iterable[str]) -> Iterator[str]:
    for package in packages:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            yield module.name


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


class _SignalsOfDagBag:
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


# --- The supervisor ---------------------------------------------------------------------------------


class _Pidfd:
    """A process's descriptor with the two methods that the supervisor's selector needs."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


@attrs.define(kw_only=True, slots=False)
class SupervisedTask(ActivitySubprocess):  # type: ignore[misc] # Airflow publishes no types
    """The Task SDK's supervisor, whose say comes from the relay: no start call and no heartbeats of its own."""

    link: Link
    kill_grace_seconds: float

    def _on_child_started(self, ti: Any, dag_rel_path: Any, bundle_info: Any) -> None:  # noqa: ARG002 - the SDK's signature
        """Do nothing: the gateway has started the task instance, and the task was forked with its details."""
        self.ti = ti

    def _register_pipe_readers(self, **sockets: Any) -> None:
        super()._register_pipe_readers(**sockets)
        self.selector.register(self.link, 1, (lambda _link: self.link.poll(), self._unregister))
        # The task's sockets end a moment before it can be waited for; the SDK would sleep for seconds in between.
        self.selector.register(_Pidfd(self.pid), 1, (lambda _pidfd: self._task_ended(), self._unregister))

    def _task_ended(self) -> bool:
        """Kill what the task has left running, which may hold its sockets open; False means: stop watching."""
        process.kill_descendants(spared=self.pid)
        return False

    def _unregister(self, sock: Any) -> None:
        with suppress(KeyError):
            self.selector.unregister(sock)

    def _send_heartbeat_if_needed(self) -> None:
        """Called by the SDK's loop after every event: here the order to stop is obeyed."""
        self._last_successful_heartbeat = time.monotonic()
        if self.link.ended is None or self._terminal_state == SERVER_TERMINATED:  # type: ignore[has-type] # untyped base
            return
        ended = self.link.ended
        self.process_log.error("The task is being stopped", reason=ended.cancel, detail=ended.detail)
        self.kill(signal.SIGTERM, escalation_delay=self.kill_grace_seconds, force=True)
        self.process_log.error("Task killed!")
        self._terminal_state = SERVER_TERMINATED

    def _upload_logs(self) -> None:
        """Do nothing: the agent ships the log."""

    @property
    def died_of(self) -> signal.Signals | None:
        """The signal that ended the task, if one did."""
        code = self._exit_code
        return signal.Signals(-code) if code is not None and code < 0 else None


def task_log(file: BinaryIO) -> Any:
    """Return the logger that writes the task's log: JSON lines, secrets masked."""
    processors = logging_processors(enable_pretty_log=False)[0]
    level = logging.getLevelNamesMapping()[conf.get("logging", "logging_level", fallback="INFO").upper()]
    return structlog.wrap_logger(
        structlog.BytesLogger(file),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
        logger_name="task",
    ).bind()


def details_of(job: Job) -> StartupDetails:
    """Return what the Task SDK tells a task at its start."""
    return StartupDetails.model_construct(
        ti=TaskInstance.model_validate(job.ti),
        dag_rel_path=job.source.dag_rel_path,
        bundle_info=BundleInfo(name=job.source.bundle_name, version=job.source.bundle_version),
        start_date=job.start_date,
        ti_context=TIRunContext.model_validate(job.ti_context),
    )


def start_task(
    job: Job, parsed: ParsedFile | None, link: Link, log: Any, in_child: Callable[[], None]
) -> SupervisedTask:
    """Fork the task. `in_child` runs first there, and lets go of what is the supervisor's."""
    details = details_of(job)

    def target() -> None:
        in_child()
        task_main(job, details, parsed)

    task: SupervisedTask = SupervisedTask.start(
        what=details.ti,
        dag_rel_path=details.dag_rel_path,
        bundle_info=details.bundle_info,
        client=RelayClient(link),
        target=target,
        logger=log,
        link=link,
        kill_grace_seconds=job.kill_grace_seconds,
    )
    return task


def report_failed(job: Job, link: Link) -> None:
    """Report the task as failed on behalf of a supervisor that can do no more."""
    RelayClient(link).task_instances.finish(
        id=TaskInstance.model_validate(job.ti).id,
        state=TaskInstanceState.FAILED,
        when=datetime.now(tz=UTC),
        rendered_map_index=None,
    )


# --- The task ---------------------------------------------------------------------------------------


def task_main(job: Job, details: StartupDetails, parsed: ParsedFile | None) -> None:
    """Run the task, as `task_runner.main` does; what is different is that the file may be parsed already.

    There is no `BundleVersionLock`: the agent keeps the snapshot for as long as the task runs.
    """
    log = structlog.get_logger(logger_name="task")
    comms = CommsDecoder(log=log, body_decoder=_TO_TASK, err_decoder=_TO_TASK)
    task_runner.SUPERVISOR_COMMS = comms
    setproctitle(f"{process.TASK} {details.ti.id}")
    try:
        _run(_start(job, details, parsed, log), log)
    except KeyboardInterrupt:
        log.exception("Ctrl-c hit")
        sys.exit(2)
    except Exception:
        log.exception("Top level error")
        sys.exit(1)
    finally:
        with suppress(OSError):
            comms.socket.close()


def _start(job: Job, details: StartupDetails, parsed: ParsedFile | None, log: Any) -> Any:
    """Return the runtime task instance, as `task_runner.startup` does."""
    try:
        task_runner.get_listener_manager().hook.on_starting(component=task_runner.TaskRunnerMarker())
    except Exception:
        log.exception("error calling listener")
    with _airflow_parsing_context_manager(dag_id=details.ti.dag_id, task_id=details.ti.task_id):
        task = _find_task(parsed or parse(job.source), details, log)
    _refuse_impersonation(task, log)
    ti = task_runner.RuntimeTaskInstance.model_construct(
        **details.ti.model_dump(exclude_unset=True),
        task=task,
        bundle_instance=SnapshotBundle(job.source),
        _ti_context_from_server=details.ti_context,
        max_tries=details.ti_context.max_tries,
        start_date=details.start_date,
        state=TaskInstanceState.RUNNING,
    )
    ti.log_url = task_runner.get_log_url_from_ti(ti)
    return ti


def _run(ti: Any, log: Any) -> None:
    context = ti.get_template_context()
    state, _, error = task_runner.run(ti, context, log)
    context["exception"] = error
    task_runner.finalize(ti, state, context, log, error)


def _find_task(parsed: ParsedFile, details: StartupDetails, log: Any) -> Any:
    where = {"bundle": details.bundle_info, "path": details.dag_rel_path, "dag_id": details.ti.dag_id}
    dag = parsed.dags.get(details.ti.dag_id)
    if dag is None:
        log.error("DAG not found during start up", **where, import_errors=dict(parsed.errors))
        sys.exit(1)
    task = dag.task_dict.get(details.ti.task_id)
    if task is None:
        log.error("Task not found in DAG during start up", **where, task_id=details.ti.task_id)
        sys.exit(1)
    if not isinstance(task, BaseOperator | MappedOperator):
        raise TypeError(
            f"task {details.ti.task_id} is a {type(task)}; wanted {BaseOperator} or {MappedOperator}"
        )
    return task


def _refuse_impersonation(task: Any, log: Any) -> None:
    wanted = getattr(task, "run_as_user", None) or conf.get("core", "default_impersonation", fallback=None)
    if wanted and wanted != getuser():
        log.error(
            "run_as_user is not supported on AirBridge workers: tasks run as the worker's own user. "
            "Remove run_as_user, or give the task the queue of a pool whose workers run as that user",
            run_as_user=wanted,
            worker_user=getuser(),
        )
        sys.exit(1)


# --- The rehearsal ----------------------------------------------------------------------------------


@contextmanager
def unheard() -> Iterator[None]:
    """Keep plugins' listeners from hearing of the task that the zygote rehearses with."""
    get_listener_manager = task_runner.get_listener_manager
    nobody = ListenerManager()
    task_runner.get_listener_manager = lambda: nobody
    try:
        yield
    finally:
        task_runner.get_listener_manager = get_listener_manager


def pretend_to_run(job: Job, parsed: ParsedFile, link: Any) -> None:
    """Run a task in this process, with what its supervisor would do for it done here as well."""
    log = structlog.get_logger(logger_name="task")
    with Path(os.devnull).open("ab") as nowhere:
        task_runner.SUPERVISOR_COMMS = _Pretence(RelayClient(link), task_log(nowhere))
        try:
            _run(_start(job, details_of(job), parsed, log), log)
        finally:
            del task_runner.SUPERVISOR_COMMS


class _Pretence:
    """A channel to a supervisor that is in the same process; messages are still encoded and decoded."""

    def __init__(self, client: RelayClient, log: Any) -> None:
        self.client = client
        self.id = UUID(int=0)
        self._answer: Any = None
        self._lines = supervisor.process_log_messages_from_subprocess((log,))
        next(self._lines)
        self._decoder = CommsDecoder(body_decoder=_TO_TASK, err_decoder=_TO_TASK, socket=None)

    def send(self, msg: Any) -> Any:
        """Handle a message of the task as the supervisor does."""
        frame = _RequestFrame(id=1, body=msg.model_dump()).as_bytes()
        request = msgspec.msgpack.Decoder[_RequestFrame](_RequestFrame).decode(frame[4:])
        SupervisedTask._handle_request(  # noqa: SLF001 - stands in for the supervisor
            self, SupervisedTask.decoder.validate_python(request.body), supervisor.log, 1
        )
        self._lines.send(
            b'{"timestamp":"2025-01-01T00:00:00.000000","level":"info","event":"rehearsal","logger":"task"}'
        )
        return self._decoder._from_frame(  # noqa: SLF001 - as above
            self._decoder.resp_decoder.decode(self._answer)
        )

    def send_msg(self, msg: Any, request_id: int, error: Any = None, **dump_opts: Any) -> None:  # noqa: ARG002 - the SDK's signature
        """Keep the supervisor's answer."""
        self._answer = _ResponseFrame(
            id=request_id, body=msg.model_dump(**dump_opts) if msg else None
        ).as_bytes()[4:]
