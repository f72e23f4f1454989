"""The Task SDK's supervisor of one task, with the execution API proxy in place of the API server."""

from __future__ import annotations

import json
import logging
import selectors
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, BinaryIO, ClassVar, Final

import attrs
import msgspec
import structlog
from airflow.configuration import conf
from airflow.sdk.api.client import ServerResponseError
from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance, TaskInstanceState, TIRunContext
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time import secrets_masker, supervisor
from airflow.sdk.execution_time.comms import (
    DeleteXCom,
    ErrorResponse,
    GetConnection,
    GetVariable,
    StartupDetails,
    _RequestFrame,
)
from airflow.sdk.execution_time.supervisor import (
    SERVER_TERMINATED,
    ActivitySubprocess,
    forward_to_log,
    process_log_messages_from_subprocess,
)
from airflow.sdk.log import logging_processors

from airbridge.core import task_calls
from airbridge.core.protocol import exception_name
from airbridge.core.sandbox.bounded_reads import FrameReader, LineReader
from airbridge.edge_worker._airflow import regional_secrets, strict
from airbridge.edge_worker._airflow.client import ProxyClient
from airbridge.edge_worker._airflow.region_messages import TO_SUPERVISOR, LoadXCom, StoreXCom, Transfer
from airbridge.edge_worker.proxy import region_calls
from airbridge.edge_worker.runner.messages import Job
from airbridge.edge_worker.runner.proxy_connection import ProxyConnection
from airbridge.edge_worker.runner.task_handle import RemoteProcess

# Event of `airflow.sdk.execution_time.task_runner.run` with the exception that failed the task.
_FAILED: Final = "Task failed with exception"

# Of a request of a task. The largest carries an XCom, whose numbers may take more than twice the room that they have in JSON.
MAX_REQUEST_BYTES: Final = 3 * task_calls.XCOM_BODY.size

# Of a line that a task logs, and of one that it prints, which is split.
MAX_LOG_LINE_BYTES: Final = 16 * 1024 * 1024
MAX_OUTPUT_LINE_BYTES: Final = 1024 * 1024

_REQUESTS: Final = msgspec.msgpack.Decoder(_RequestFrame)

# Byte that a task waits for on its requests socket before it begins.
GO: Final = b"g"


# Airflow's mail looks for a connection with user and password, and takes none for an answer, but no denial.
_MAIL_DENIED: Final = (
    "The policy denies this task the connection of [email] email_conn_id, which counts as not found: Airflow sends mail without "
    "user and password. A rule with connections.read for it grants the access"
)


@attrs.define(kw_only=True, slots=False)
class SupervisedTask(ActivitySubprocess):  # type: ignore[misc] # Airflow publishes no types
    """The Task SDK's supervisor, of a task that a template has forked.

    It makes no start call and no heartbeats: the gateway has started the task instance, and the lease is its heartbeat.
    """

    decoder: ClassVar[Any] = TO_SUPERVISOR

    proxy: ProxyConnection
    remote: RemoteProcess
    kill_grace_seconds: float

    def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
        """Answer what the Task SDK does not know; everything else is the SDK's to answer."""
        if strict.enforced():
            msg = strict.withhold(msg)
        msg = self._with_map_index(msg)
        try:
            self._answer(msg, log, req_id)
        except ServerResponseError as error:
            if error.response.status_code != HTTPStatus.FORBIDDEN or not _is_of_mail(msg):
                raise
            self.process_log.warning(_MAIL_DENIED, conn_id=msg.conn_id, detail=str(error.detail))
            absent = ErrorResponse(error=ErrorType.CONNECTION_NOT_FOUND, detail={"conn_id": msg.conn_id})
            self.send_msg(absent, request_id=req_id)

    def _answer(self, msg: Any, log: Any, req_id: int) -> None:
        if isinstance(msg, StoreXCom | LoadXCom):
            self.send_msg(self._transfer(msg), request_id=req_id)
        elif isinstance(msg, GetConnection | GetVariable) and (found := self._regional_secret(msg)):
            # Password and extra are masked in this process's logs already; the task masks them in its own.
            # With what is not set: the type of a message, by which the task recognises it, is a default.
            self.send_msg(found, request_id=req_id, by_alias=True)
        else:
            super()._handle_request(msg, log, req_id)

    def _with_map_index(self, msg: Any) -> Any:
        """Return a message that deletes an XCom of this task with the task's map index; the one of Airflow 3.0.4 has none."""
        if not isinstance(msg, DeleteXCom) or msg.map_index is not None:
            return msg
        own = (msg.dag_id, msg.run_id, msg.task_id) == (self.ti.dag_id, self.ti.run_id, self.ti.task_id)
        return msg.model_copy(update={"map_index": self.ti.map_index}) if own else msg

    def _regional_secret(self, msg: Any) -> Any:
        """Return the answer from the region's secrets backend; None if the control plane is to give it."""
        if not regional_secrets.configured():
            return None
        found = regional_secrets.look_up(msg, self.client.ask)
        if isinstance(found, ErrorResponse):
            # Airflow's error of a missing connection has no reason in it.
            self.process_log.info("Secret not read", detail=found.detail["message"])
        return found

    def _transfer(self, msg: StoreXCom | LoadXCom) -> Transfer:
        path = region_calls.STORE if isinstance(msg, StoreXCom) else region_calls.LOAD
        body = msg.model_dump_json(exclude={"type"})
        return Transfer.model_validate_json(self.client.ask("POST", path, body).content)

    def begin(self) -> None:
        """Let the task begin."""
        with suppress(OSError):  # it has died already, which is found out soon enough
            self.stdin.sendall(GO)

    def _register_pipe_readers(self, **sockets: Any) -> None:
        """Register the SDK's handlers behind readers that are bounded: the SDK's keep what a task sends, however long it is."""
        super()._register_pipe_readers(**sockets)
        requests, logs = (
            self.handle_requests(supervisor.log),
            process_log_messages_from_subprocess((self.process_log,)),
        )
        next(requests)
        next(logs)
        readers = {
            "requests": FrameReader(lambda frame: requests.send(_REQUESTS.decode(frame)), MAX_REQUEST_BYTES),
            "logs": LineReader(logs.send, MAX_LOG_LINE_BYTES, _left_out),
        }
        for name, reader in readers.items():
            self.selector.modify(sockets[name], selectors.EVENT_READ, (reader, self._on_socket_closed))
        for source, handler in (
            (self.proxy, self.proxy.poll),
            (self.remote.handle, self.remote.handle.receive),
            (self.remote.handle.zygote, self.remote.handle.receive_from_zygote),
        ):
            self.selector.register(source, selectors.EVENT_READ, (_without_file(handler), self._unregister))

    def _send_new_log_fd(self, req_id: int) -> None:
        """Refuse another socket for logs, whose reader of the SDK's is not bounded: only `run_as_user` needs one."""
        detail = {
            "status_code": HTTPStatus.NOT_IMPLEMENTED.value,
            "message": "ResendLoggingFD is not supported on AirBridge workers: run_as_user, which it belongs to, is refused",
        }
        refusal = ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail)
        self.send_msg(None, request_id=req_id, error=refusal)

    def _create_log_forwarder(self, loggers: Any, channel: str, log_level: int = logging.INFO) -> Any:
        lines = forward_to_log(loggers, chan=channel, level=log_level)
        next(lines)
        return LineReader(lines.send, MAX_OUTPUT_LINE_BYTES), self._on_socket_closed

    def _unregister(self, sock: Any) -> None:
        with suppress(KeyError):
            self.selector.unregister(sock)

    def _send_heartbeat_if_needed(self) -> None:
        """Stop the task if the agent has cancelled it; the SDK's loop calls this after every event."""
        self._last_successful_heartbeat = time.monotonic()
        if self.proxy.ended is None or self._terminal_state == SERVER_TERMINATED:  # type: ignore[has-type] # untyped base
            return
        ended = self.proxy.ended
        self.process_log.error("The task is being stopped", reason=ended.cancel, detail=ended.detail)
        # While it ends: `on_kill` may have to read a connection, to stop what the task has started elsewhere.
        self.proxy.serve_reads(self.kill_grace_seconds)
        self.kill(signal.SIGTERM, escalation_delay=self.kill_grace_seconds, force=True)
        self.process_log.error("Task killed!")
        self._terminal_state = SERVER_TERMINATED

    def _upload_logs(self) -> None:
        """Do nothing: the agent ships the log."""

    @property
    def killed_by(self) -> int | None:
        """The signal that ended the task, if one did."""
        code = self._exit_code
        return -int(code) if code is not None and code < 0 else None


def _is_of_mail(msg: Any) -> bool:
    return isinstance(msg, GetConnection) and msg.conn_id == conf.get("email", "email_conn_id", fallback=None)


def _left_out(size: int) -> bytes:
    """Return the line of a log in the place of one that is too long to be kept."""
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    event = f"a line of {size} bytes is left out: one of a task's log has at most {MAX_LOG_LINE_BYTES} bytes"
    return json.dumps({"timestamp": now, "level": "warning", "event": event, "logger": "task"}).encode()


def _without_file(handler: Callable[[], bool]) -> Callable[[object], bool]:
    return lambda _file: handler()


@attrs.define(kw_only=True, slots=False)
class SupervisedHost(SupervisedTask):
    """Supervisor of a trigger host. The host talks to the agent itself; what is left are its output and its end."""

    def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
        raise NotImplementedError(f"a trigger host sends no {type(msg).__name__} to its supervisor")

    def update_task_state_if_needed(self) -> None:
        """Do nothing: there is no task."""


class FailureNote:
    """Processor of a task's log that keeps the class of the exception that failed the task, and nothing else of it."""

    def __init__(self) -> None:
        self.exception = ""

    def __call__(self, _logger: Any, _level: str, event: Any) -> Any:
        """Read a line that the Task SDK logs, or that the task's own code makes look like one; pass it on."""
        if event.get("event") == _FAILED:
            self.exception = exception_name(_raised(event.get("error_detail")))
        return event


def _raised(error_detail: Any) -> object:
    """Return the class's name of the first of a chain of exceptions: the others are its causes."""
    match error_detail:
        case [{"exc_type": name}, *_]:
            return name
    return None


def task_log(file: BinaryIO, note: FailureNote | None = None) -> Any:
    """Return the logger that writes the task's log: JSON lines, secrets masked. `note` sees each line before."""
    processors = [*([note] if note else []), *logging_processors(enable_pretty_log=False)[0]]
    level = logging.getLevelNamesMapping()[conf.get("logging", "logging_level", fallback="INFO").upper()]
    return structlog.wrap_logger(
        structlog.BytesLogger(file),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
        logger_name="task",
    ).bind()


def details_of(job: Job) -> StartupDetails:
    """Return the Task SDK's startup details of a task."""
    return StartupDetails.model_construct(
        ti=TaskInstance.model_validate(job.ti),
        dag_rel_path=job.source.dag_rel_path,
        bundle_info=BundleInfo(name=job.source.bundle_name, version=job.source.bundle_version),
        start_date=job.start_date,
        ti_context=TIRunContext.model_validate(job.ti_context),
    )


def start_task(
    job: Job, proxy: ProxyConnection, log: Any, fork: Callable[[list[int], socket.socket], RemoteProcess]
) -> SupervisedTask:
    """Have the template `fork` the task, which waits to `begin`. Raises `NotForkedError`.

    `fork` takes the task's ends of requests, stdout, stderr and logs, and the other end of the requests.
    """
    pairs = [socket.socketpair() for _ in range(4)]
    try:
        remote = fork([theirs.fileno() for _, theirs in pairs], pairs[0][0])
    finally:
        for _, theirs in pairs:
            theirs.close()
    requests, stdout, stderr, logs = (ours for ours, _ in pairs)
    proxy.give_reads_up_for(requests)
    ti = TaskInstance.model_validate(job.ti)
    task = (SupervisedHost if job.triggers else SupervisedTask)(  # type: ignore[call-arg] # of the untyped base
        id=ti.id,
        pid=remote.pid,
        stdin=requests,
        process=remote,
        process_log=log,
        client=ProxyClient(proxy),
        proxy=proxy,
        remote=remote,
        kill_grace_seconds=job.kill_grace_seconds,
    )
    task.ti = ti
    task._register_pipe_readers(requests=requests, stdout=stdout, stderr=stderr, logs=logs)  # noqa: SLF001 - our own
    return task


def secrets_reset() -> Callable[[], None]:
    """Return a function that resets this process's log masker to its present secrets."""
    masker = secrets_masker._secrets_masker()  # noqa: SLF001 - the one that all logs are masked with
    patterns, replacer = frozenset(masker.patterns), masker.replacer

    def forget() -> None:
        masker.patterns, masker.replacer = set(patterns), replacer

    return forget


def report_failed(job: Job, proxy: ProxyConnection) -> None:
    """Report the task as failed, to be retried if Airflow would, on behalf of a supervisor that can do no more."""
    calls, ti, now = (
        ProxyClient(proxy).task_instances,
        TaskInstance.model_validate(job.ti),
        datetime.now(tz=UTC),
    )
    if TIRunContext.model_validate(job.ti_context).should_retry:
        calls.retry(id=ti.id, end_date=now, rendered_map_index=None)
    else:
        calls.finish(id=ti.id, state=TaskInstanceState.FAILED, when=now, rendered_map_index=None)
