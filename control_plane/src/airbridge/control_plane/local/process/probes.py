"""Readiness probes of components: HTTP endpoints, and rows that a working component writes to the database."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.process.component import Probe
from airbridge.control_plane.local.services import postgres
from airbridge.control_plane.local.services.postgres import Postgres

_TIMEOUT_SECONDS = 2.0


def http_ok(url: str, ca_file: Path | None = None) -> Probe:
    """Return a probe that is ready when the URL answers 200. `ca_file` is required for https."""

    def probe(_started_at: datetime) -> bool:
        # A failed connect is cheap; creating an SSL context several times a second is not.
        if not ports.is_open(httpx.URL(url).port or 0):
            return False
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file else False
        try:
            with httpx.Client(verify=verify, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                return client.get(url).status_code == 200
        except httpx.HTTPError:
            return False

    return probe


def database_answers(
    server: Postgres, initial_password: Path, prepare: Callable[[], None] = lambda: None
) -> Probe:
    """Return a probe that is ready when Postgres answers a query, and `prepare` has run since it was started.

    It gives a copy of the template its own password first. `prepare` raises `ConnectionError` to be run again.
    """
    prepared: set[datetime] = set()

    def probe(started_at: datetime) -> bool:
        if not ports.is_open(server.port):
            return False
        try:
            postgres.set_own_password(server, initial_password)
            if started_at not in prepared:
                prepare()
                prepared.add(started_at)
        except ConnectionError:
            return False
        return server.accepts_queries()

    return probe


class DatabaseProbes:
    """Probes that query the database, over one shared connection: each runs many times a second."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._connection: Any = None

    def job_is_running(self, job_type: str) -> Probe:
        """Return a probe that is ready when an Airflow job of this type, started after its process, is running."""
        statement = "SELECT 1 FROM job WHERE job_type = %s AND state = 'running' AND start_date >= %s LIMIT 1"
        return lambda started_at: self._finds(statement, job_type, started_at)

    def worker_heartbeat_received(self, worker: str) -> Probe:
        """Return a probe that is ready when a heartbeat of the worker is later than the start of its process."""
        statement = "SELECT 1 FROM airbridge_worker WHERE id = %s AND last_heartbeat_at >= %s"
        return lambda started_at: self._finds(statement, worker, started_at)

    def _finds(self, statement: str, *parameters: object) -> bool:
        import psycopg2

        try:
            if self._connection is None:
                self._connection = postgres.connect(self._server)
            return bool(postgres.fetch(self._connection, statement, parameters))
        except (ConnectionError, psycopg2.Error):
            self._connection = None  # Postgres may have been restarted: connect again next time
            return False
