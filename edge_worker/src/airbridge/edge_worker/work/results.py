"""Results of reported records: what the control plane made of a task's writes, for its log and its attempt."""

from __future__ import annotations

import json

import structlog

from airbridge.core import task_calls
from airbridge.core.protocol import RecordResult, RefusalReason
from airbridge.edge_worker.exceptions import GatewayError
from airbridge.edge_worker.proxy.recorder import Recorder
from airbridge.edge_worker.work.attempts import Attempt, Entry, Stop
from airbridge.edge_worker.work.launcher import Launcher

log = structlog.get_logger(__name__)

_LOGGED_BODY_CHARACTERS = 500


class Results:
    """Applies results to attempts."""

    def __init__(self, launcher: Launcher, recorder: Recorder) -> None:
        self._launcher = launcher
        self._recorder = recorder

    def answered(self, attempt: Attempt, entry: Entry, result: RecordResult) -> None:
        """Handle the result of a record."""
        if not entry.write:
            self._launcher.settle(attempt)
            return
        # With a waiter the task gets the refusal itself; without one it already got a success.
        if attempt.answered(entry, result.status):
            self._refused(attempt, entry, result)
        if entry.final:
            log.info("task.reported", item_id=attempt.key[0], epoch=attempt.key[1], status=result.status)
            self._launcher.close_log(attempt)
        self._launcher.settle(attempt)

    def rejected(self, attempt: Attempt, entry: Entry, error: GatewayError) -> bool:
        """Handle a write that the gateway refuses to read; return whether it is to be sent again, as a failure.

        The gateway keeps no record of it, so the attempt is failed here.
        """
        if entry.final:
            return self._recorder.fail_instead(attempt)
        if entry.waiter is None:
            write = task_calls.describe(entry.record.method, entry.record.path)
            attempt.rejected_writes.append(f"{write}: {error}")
            self._recorder.fail_instead(attempt)
        return False

    def fenced(self, attempt: Attempt, result: RecordResult) -> None:
        """Handle an attempt that the control plane has given up."""
        reason = result.refused or RefusalReason.UNKNOWN
        log.warning(
            "task.fenced", item_id=attempt.key[0], epoch=attempt.key[1], reason=reason, body=result.body
        )
        if not attempt.ended:
            self._launcher.log_refused_write(
                attempt, f"The control plane has given this attempt up ({reason}); its results do not count."
            )
            stop = Stop(reason, "the control plane has given this attempt up", report=False)
            self._launcher.stop(attempt, stop)
        self._launcher.close_log(attempt)
        self._launcher.settle(attempt)

    def _refused(self, attempt: Attempt, entry: Entry, result: RecordResult) -> None:
        log.error(
            "record.refused_by_airflow",
            item_id=attempt.key[0],
            epoch=attempt.key[1],
            seq=entry.record.seq,
            path=entry.record.path,
            status=result.status,
            body=(result.body or "")[:_LOGGED_BODY_CHARACTERS],
        )
        if entry.final:
            message = f"The control plane did not accept the task's state: {_reason(result)}"
        else:
            write = task_calls.describe(entry.record.method, entry.record.path)
            message = f"{write} was accepted here, and then refused by the control plane: {_reason(result)}"
        self._launcher.log_refused_write(attempt, message)


def _reason(result: RecordResult) -> str:
    """Return the control plane's reason for a refusal, for people."""
    try:
        detail = json.loads(result.body or "")["detail"]
        return str(detail["message"] if isinstance(detail, dict) else detail)
    except (ValueError, KeyError, TypeError):
        return f"status {result.status}: {result.body}"
