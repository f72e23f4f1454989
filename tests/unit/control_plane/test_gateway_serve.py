"""A gateway's process, from its start to its signal."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from airbridge.control_plane import _airflow
from airbridge.control_plane.gateway import server
from airbridge.control_plane.gateway.server import Gateway


class _Served(Gateway):
    """A gateway without listeners: the process is told to stop as soon as it has started."""

    def __init__(self, log: list[str]) -> None:
        self._log = log

    async def start(self) -> None:
        self._log.append("started")
        os.kill(os.getpid(), signal.SIGTERM)

    async def stop(self) -> None:
        self._log.append("stopped")


def test_connections_are_pinged_before_requests_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's pings are set for the engine of this process, and then it listens."""
    log: list[str] = []
    monkeypatch.setattr(_airflow, "engine", lambda: "the engine")
    monkeypatch.setattr(server, "ping_idle_only", lambda engine: log.append(f"pings of {engine}"))
    asyncio.run(_Served(log).serve())
    assert log == ["pings of the engine", "started", "stopped"]
