"""Airflow's side of the queue: EdgeExecutor, placement, ledger, outbox, and the wire protocol.

Nothing is imported until it is asked for: a worker that imports `airbridge.executor.protocol` must
not get the executor, the ORM and Airflow's configuration with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airbridge.executor.executor import EdgeExecutor
    from airbridge.executor.hints import near

__all__ = ["EdgeExecutor", "near"]


def __getattr__(name: str) -> Any:
    if name == "EdgeExecutor":
        from airbridge.executor.executor import EdgeExecutor

        return EdgeExecutor
    if name == "near":
        from airbridge.executor.hints import near

        return near
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
