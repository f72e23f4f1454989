"""How to tell that a component is ready: by asking it, or the database, for what only a working one can say."""

from __future__ import annotations

import ssl
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from airbridge.control_plane.local import ports, postgres
from airbridge.control_plane.local.component import Probe
from airbridge.control_plane.local.postgres import Postgres

_TIMEOUT_SECONDS = 2.0


def http_ok(url: str, ca_file: Path | None = None) -> Probe:
    """Ready when the URL answers 200. `ca_file` is needed for https."""

    def probe(_started_at: datetime) -> bool:
        if not ports.is_open(httpx.URL(url).port or 0):
            return False
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file else False
        try:
            with httpx.Client(verify=verify, timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                return client.get(url).status_code == 200
        except httpx.HTTPError:
            return False

    return probe


def database_answers(server: Postgres, initial_password: Path) -> Probe:
    """Ready when Postgres takes a query; a copy of the template gets its own password first."""

    def probe(_started_at: datetime) -> bool:
        if not ports.is_open(server.port):
            return False
        try:
            postgres.adopt(server, initial_password)
        except ConnectionError:
            return False
        return server.answers()

    return probe


class DatabaseProbes:
    """Probes that look into the database, over one connection: they are asked many times a second."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._connection: Any = None

    def job_runs(self, job_type: str) -> Probe:
        """Ready when an Airflow job of this type, begun after its process was started, is running."""
        statement = "SELECT 1 FROM job WHERE job_type = %s AND state = 'running' AND start_date >= %s LIMIT 1"
        return lambda started_at: self._finds(statement, job_type, started_at)

    def worker_beats(self, worker: str) -> Probe:
        """Ready when the worker's heartbeat reached the ledger after its process was started."""
        statement = "SELECT 1 FROM airbridge_worker WHERE id = %s AND last_heartbeat_at >= %s"
        return lambda started_at: self._finds(statement, worker, started_at)

    def _finds(self, statement: str, *parameters: object) -> bool:
        import psycopg2

        try:
            if self._connection is None:
                self._connection = postgres.connect(self._server)
            return bool(postgres.fetch(self._connection, statement, parameters))
        except (ConnectionError, psycopg2.Error):
            self._connection = None  # Postgres may have been started again: connect anew next time
            return False
