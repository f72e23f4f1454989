"""Airflow's side of the queue: EdgeExecutor, placement, dispatch, bundles and the ledger.

Imports are lazy: Airflow's configuration names `airbridge.executor.EdgeExecutor`, and a process that
needs the ledger alone must not get Airflow's executors with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airbridge.executor.executor import EdgeExecutor

__all__ = ["EdgeExecutor"]


def __getattr__(name: str) -> Any:
    if name == "EdgeExecutor":
        from airbridge.executor.executor import EdgeExecutor

        return EdgeExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
