"""Tracebacks in the logs of scheduler and api-server without local variables.

Airflow 3.0.4 leaves structlog as it is in both, and rich is installed: each traceback would show the local variables of
every frame. That takes seconds to minutes, in which nothing is scheduled, and shows the tokens that workloads carry.
"""

from __future__ import annotations

import sys

import structlog


def install() -> None:
    """Have structlog write plain tracebacks in this process, unless it has been configured."""
    if structlog.is_configured():
        return
    *others, _ = structlog.get_config()["processors"]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    structlog.configure(processors=[*others, console])
