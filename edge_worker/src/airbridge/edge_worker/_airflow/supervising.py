"""The Task SDK's supervisor of one task, with the relay in place of the API server."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, BinaryIO

import attrs
import structlog
from airflow.configuration import conf
from airflow.sdk.api.datamodels._generated import BundleInfo, TaskInstance, TaskInstanceState, TIRunContext
from airflow.sdk.execution_time.comms import StartupDetails
from airflow.sdk.execution_time.supervisor import SERVER_TERMINATED, ActivitySubprocess
from airflow.sdk.log import logging_processors

from airbridge.edge_worker._airflow.client import RelayClient
from airbridge.edge_worker._airflow.parsing import ParsedFile
from airbridge.edge_worker._airflow.running import task_main
from airbridge.edge_worker.runner import process
from airbridge.edge_worker.runner.link import Link
from airbridge.edge_worker.runner.messages import Job


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
