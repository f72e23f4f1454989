"""A control plane with the settings of the test."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.integration.partition import world as partition
from tests.support.airflow_home import Metadata

from airbridge.core.aws.queue import MemoryQueue, WorkQueue

MakeWorld = Callable[..., partition.World]


@pytest.fixture
def make_world(postgres_metadata: Metadata, tmp_path: Path) -> Iterator[MakeWorld]:
    """Starts the control plane, with settings changed; its queue is one in memory unless it is handed another."""
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[structlog.processors.add_log_level, plain],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    with ExitStack() as stack:

        def make(queue: WorkQueue | None = None, **changes: Any) -> partition.World:
            return stack.enter_context(
                partition.running(postgres_metadata, tmp_path, queue or MemoryQueue(), **changes)
            )

        yield make
    structlog.reset_defaults()
