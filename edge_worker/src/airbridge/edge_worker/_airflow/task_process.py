"""The task's own process: the Task SDK's task runner on a file that may be parsed already."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any, Final, NoReturn

import attrs
import structlog
from airflow.configuration import conf
from airflow.sdk.api.datamodels._generated import TaskInstanceState
from airflow.sdk.bases.operator import BaseOperator
from airflow.sdk.definitions._internal.dag_parsing_context import _airflow_parsing_context_manager
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import supervisor, task_runner
from airflow.sdk.execution_time.comms import (
    CommsDecoder,
    ErrorResponse,
    StartupDetails,
    _RequestFrame,
    _ResponseFrame,
)
from airflow.utils.platform import getuser
from setproctitle import setproctitle

from airbridge.edge_worker._airflow.masking import mask_output
from airbridge.edge_worker._airflow.parsing import ParsedFile, SnapshotBundle, parse
from airbridge.edge_worker._airflow.region_messages import TO_TASK
from airbridge.edge_worker._airflow.supervisor import GO, MAX_REQUEST_BYTES, details_of
from airbridge.edge_worker._airflow.trigger_process import trigger_main
from airbridge.edge_worker.runner import access_denied, process
from airbridge.edge_worker.runner.messages import Job
from airbridge.edge_worker.runner.task_handle import CHALLENGE_BYTES

# Exit code of the Task SDK's own fork if not even its last handler could end it.
_EXIT_WITHOUT_END: Final = 124

# Signals whose handlers raise, or make requests themselves: those of `execution_timeout`, `on_kill` and Ctrl-c.
_INTERRUPTING: Final = frozenset({signal.SIGALRM, signal.SIGTERM, signal.SIGINT})
_CHUNK: Final = 256 * 1024
# Seconds between two looks at the answers: a signal's handler may have received one, and then the wait goes on (PEP 475).
_AGAIN_SECONDS: Final = 0.5
# Bytes of a frame's length.
_HEAD: Final = 4


class RequestTooLargeError(AirflowRuntimeError):  # type: ignore[misc] # Airflow publishes no types
    """A request has more bytes than the supervisor reads. Nothing of it was sent."""


@contextmanager
def _uninterrupted() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@attrs.define(slots=False, eq=False)
class TaskComms(CommsDecoder):  # type: ignore[misc] # Airflow publishes no types
    """The Task SDK's channel to the supervisor, on which a request may be given up: by a timeout, or for one of `on_kill`.

    Airflow 3.0.4 returns the next answer that comes, whichever request it is of, and does not keep what it has sent or received of a
    frame that is interrupted.
    """

    _unsent: bytearray = attrs.field(init=False, factory=bytearray, repr=False)
    _received: bytearray = attrs.field(init=False, factory=bytearray, repr=False)
    #: Answers to the requests that are waited for, by their ids. All others are dropped.
    _answers: dict[int, _ResponseFrame | None] = attrs.field(init=False, factory=dict, repr=False)
    # Re-entrant: `on_kill` makes requests in the middle of one.
    _lock: Any = attrs.field(init=False, factory=threading.RLock, repr=False)

    def send(self, msg: Any) -> Any:
        """Send a request and return its answer.

        Raises `AirflowRuntimeError` for a refusal, `RequestTooLargeError`, and `EOFError` without a supervisor.
        """
        with self._lock:
            number = next(self.id_counter)
            frame = _RequestFrame(id=number, body=msg.model_dump()).as_bytes()
            if len(frame) - _HEAD > MAX_REQUEST_BYTES:
                raise RequestTooLargeError(_too_large(msg, len(frame) - _HEAD))
            try:
                self._answers[number] = None
                self._unsent += frame
                while (answer := self._answers[number]) is None:
                    self._exchange()
            finally:
                self._answers.pop(number, None)
            return self._from_frame(answer)

    def _exchange(self) -> None:
        """Wait a while until something can be sent or received, and do so."""
        # Both at once: a supervisor that sends a long answer receives nothing meanwhile.
        readable, writable, _ = select.select(
            [self.socket], [self.socket] if self._unsent else [], [], _AGAIN_SECONDS
        )
        with _uninterrupted():
            if writable:
                with suppress(BlockingIOError):
                    del self._unsent[: self.socket.send(self._unsent[:_CHUNK], socket.MSG_DONTWAIT)]
            if readable:
                self._receive()

    def _receive(self) -> None:
        chunk = self.socket.recv(_CHUNK)
        if not chunk:
            raise EOFError("Request socket closed before the answer was complete")
        self._received += chunk
        while len(self._received) >= _HEAD:
            end = _HEAD + int.from_bytes(self._received[:_HEAD], byteorder="big")
            if len(self._received) < end:
                return
            frame = self.resp_decoder.decode(bytes(self._received[_HEAD:end]))
            del self._received[:end]
            if frame.id in self._answers:
                self._answers[frame.id] = frame


def _too_large(msg: Any, size: int) -> ErrorResponse:
    message = f"{type(msg).__name__} of {size} bytes: a request to the supervisor has at most {MAX_REQUEST_BYTES} bytes"
    detail = {"status_code": HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value, "message": message}
    return ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail)


def run_as_task(
    fds: Sequence[int], job: Job, parsed: ParsedFile | None, enter_sandbox: Callable[[], None]
) -> NoReturn:
    """Run the task in a process that was just forked for it. `fds`: its ends of requests, stdout, stderr and logs.

    A trigger host has a fifth, its channel to the agent.

    It answers its supervisor's challenge, calls `enter_sandbox`, and waits for `GO`.
    """
    # The SDK's `_fork_main` takes the first three as sockets and the logs as a descriptor.
    requests, stdout, stderr = (socket.socket(fileno=fd) for fd in fds[:3])
    requests.sendall(requests.recv(CHALLENGE_BYTES))

    def target() -> None:
        enter_sandbox()
        details = None if job.triggers else details_of(job)
        if requests.recv(len(GO)) != GO:
            sys.exit(1)
        if details is None:
            trigger_main(job, socket.socket(fileno=fds[4]))
        else:
            task_main(job, details, parsed)

    try:
        supervisor._fork_main(requests, stdout, stderr, fds[3], target)  # noqa: SLF001 - what the SDK's own fork runs
    except BaseException:  # noqa: BLE001 - the outer edge of the process
        traceback.print_exc()
    os._exit(_EXIT_WITHOUT_END)


def task_main(job: Job, details: StartupDetails, parsed: ParsedFile | None) -> None:
    """Run the task, as `task_runner.main` does; what is different is that the file may be parsed already.

    There is no `BundleVersionLock`: the agent keeps the snapshot for as long as the task runs.
    """
    log = structlog.get_logger(logger_name="task")
    comms = TaskComms(log=log, body_decoder=TO_TASK, err_decoder=TO_TASK)  # type: ignore[call-arg] # of the untyped base
    task_runner.SUPERVISOR_COMMS = comms
    setproctitle(f"{process.TASK} {details.ti.id}")
    mask_output()
    try:
        run(start(job, details, parsed, log), log)
    except KeyboardInterrupt:
        log.exception("Ctrl-c hit")
        sys.exit(2)
    except Exception:
        log.exception("Top level error")
        sys.exit(1)
    finally:
        with suppress(OSError):
            comms.socket.close()


def start(job: Job, details: StartupDetails, parsed: ParsedFile | None, log: Any) -> Any:
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
    ti.log_url = _log_url(ti)
    return ti


def _log_url(ti: Any) -> str:
    """Return the URL of the task's log. Airflow 3.0.4 joins its path to ``[api] base_url`` without a slash."""
    base, url = (
        conf.get("api", "base_url", fallback="http://localhost:8080/"),
        task_runner.get_log_url_from_ti(ti),
    )
    return f"{base.rstrip('/')}/{url.removeprefix(base).lstrip('/')}"


def run(ti: Any, log: Any) -> None:
    """Run the task and what follows it: callbacks, listeners, links."""
    of_task = ti.get_template_context()
    state, error = _run_to_state(ti, of_task, log)
    of_task["exception"] = error
    if (denied := access_denied.explain(error)) is not None:
        log.error(denied)
    task_runner.finalize(ti, state, of_task, log, error)


def _run_to_state(ti: Any, of_task: Any, log: Any) -> tuple[TaskInstanceState, BaseException | None]:
    """Run the task and report its state; a failure if the report is too large, which `task_runner.run` makes outside of its handlers."""
    try:
        state, _, error = task_runner.run(ti, of_task, log)
    except RequestTooLargeError as too_large:
        log.exception("Task failed with exception")
        report, state = task_runner._handle_current_task_failed(ti)  # noqa: SLF001 - as `run` ends a task of any exception
        task_runner.SUPERVISOR_COMMS.send(report)
        ti.state, error = state, too_large
    return state, error


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
