"""A task that runs in the zygote itself, supervisor included: see `runner.forking.warm_up`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import structlog
from airflow.listeners.listener import ListenerManager
from airflow.sdk.execution_time import supervisor, task_runner
from airflow.sdk.execution_time.comms import CommsDecoder, _RequestFrame, _ResponseFrame

from airbridge.edge_worker._airflow.client import ProxyClient
from airbridge.edge_worker._airflow.parsing import ParsedFile
from airbridge.edge_worker._airflow.region_messages import TO_SUPERVISOR, TO_TASK
from airbridge.edge_worker._airflow.supervisor import details_of, task_log
from airbridge.edge_worker._airflow.task_process import run, start
from airbridge.edge_worker.runner.messages import Job


@contextmanager
def without_listeners() -> Iterator[None]:
    """Disable plugins' listeners for the warm-up task."""
    get_listener_manager = task_runner.get_listener_manager
    empty = ListenerManager()
    task_runner.get_listener_manager = lambda: empty
    try:
        yield
    finally:
        task_runner.get_listener_manager = get_listener_manager


def run_in_process(job: Job, parsed: ParsedFile, proxy: Any) -> None:
    """Run a task, and the supervisor's part of it, in this process."""
    log = structlog.get_logger(logger_name="task")
    with Path(os.devnull).open("ab") as nowhere:
        task_runner.SUPERVISOR_COMMS = _WarmUpTask(ProxyClient(proxy), task_log(nowhere))
        try:
            run(start(job, details_of(job), parsed, log), log)
        finally:
            del task_runner.SUPERVISOR_COMMS


class _WarmUpTask:
    """A channel to a supervisor that is in the same process; messages are still encoded and decoded."""

    def __init__(self, client: ProxyClient, log: Any) -> None:
        self.client = client
        self.id = UUID(int=0)
        self._answer: Any = None
        self._lines = supervisor.process_log_messages_from_subprocess((log,))
        next(self._lines)
        self._decoder = CommsDecoder(body_decoder=TO_TASK, err_decoder=TO_TASK, socket=None)

    def send(self, msg: Any) -> Any:
        """Handle a message of the task as the supervisor does."""
        frame = _RequestFrame(id=1, body=msg.model_dump()).as_bytes()
        # Without the four bytes of the length, which the SDK's reader takes off.
        request = msgspec.msgpack.Decoder[_RequestFrame](_RequestFrame).decode(frame[4:])
        supervisor.ActivitySubprocess._handle_request(  # noqa: SLF001 - stands in for the supervisor
            self, TO_SUPERVISOR.validate_python(request.body), supervisor.log, 1
        )
        self._lines.send(
            b'{"timestamp":"2025-01-01T00:00:00.000000","level":"info","event":"warm_up","logger":"task"}'
        )
        return self._decoder._from_frame(  # noqa: SLF001 - as above
            self._decoder.resp_decoder.decode(self._answer)
        )

    def send_msg(self, msg: Any, request_id: int, error: Any = None, **dump_opts: Any) -> None:  # noqa: ARG002 - the SDK's signature
        """Keep the supervisor's answer."""
        self._answer = _ResponseFrame(
            id=request_id, body=msg.model_dump(**dump_opts) if msg else None
        ).as_bytes()[4:]
