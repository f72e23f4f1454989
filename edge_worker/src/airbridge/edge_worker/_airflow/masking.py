"""Masking of secrets in a task's own process, where the Task SDK leaves it to the supervisor."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from typing import Any

import structlog
from airflow.sdk.execution_time import secrets_masker
from airflow.sdk.log import mask_logs


def mask_in_tasks() -> None:
    """Mask what a task logs with the secrets of its own process; the Task SDK masks only with the supervisor's."""
    *processors, render = structlog.get_config()["processors"]
    structlog.configure(processors=[*processors, mask_logs, render])
    for handler in logging.getLogger().handlers:
        *processors, render = handler.formatter.processors  # type: ignore[union-attr] # structlog's
        handler.formatter.processors = (*processors, mask_logs, render)  # type: ignore[union-attr] # structlog's


def masking(get_connection: Callable[[str], Any]) -> Callable[[str], Any]:
    """Have the secrets of a connection masked wherever it came from; the Task SDK forgets those of secrets backends."""

    def get_and_mask(conn_id: str) -> Any:
        connection = get_connection(conn_id)
        for secret in (connection.password, connection.extra):
            if secret:
                secrets_masker.mask_secret(secret)
        return connection

    return get_and_mask


class _MaskedOutput(io.TextIOWrapper):
    """Standard output or error of a task."""

    def write(self, text: str) -> int:
        """Write `text` with the secrets of this process masked."""
        return super().write(secrets_masker.redact(text))


def mask_output() -> None:
    """Mask what this process prints."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, _MaskedOutput(getattr(sys, name).detach(), line_buffering=True))
