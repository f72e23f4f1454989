"""Counters of a Postgres server: bytes of WAL, and updates and size of the table of workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg2

_QUERY: Final = (
    "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn, coalesce(n_tup_upd, 0), coalesce(n_tup_hot_upd, 0)"
    " FROM pg_stat_user_tables WHERE relname = 'airbridge_worker'"
)
_SIZE: Final = "SELECT pg_total_relation_size('airbridge_worker'), count(*) FROM airbridge_worker"


@dataclass(frozen=True)
class DatabaseCounters:
    """Counters at one time, or the difference of two."""

    wal_bytes: int
    worker_updates: int
    worker_hot_updates: int
    """Updates that changed no index."""

    def __sub__(self, earlier: DatabaseCounters) -> DatabaseCounters:
        return DatabaseCounters(
            self.wal_bytes - earlier.wal_bytes,
            self.worker_updates - earlier.worker_updates,
            self.worker_hot_updates - earlier.worker_hot_updates,
        )


def read(database_url: str) -> DatabaseCounters:
    """Return the counters of now. Those of a session that is not idle may be missing for up to a second."""
    return DatabaseCounters(*(int(value) for value in _row(database_url, _QUERY)))


def bytes_a_worker(database_url: str) -> float:
    """Return the size of the table of workers and its indexes, dead rows included, in bytes a row. 0 if it is empty."""
    size, rows = _row(database_url, _SIZE)
    return float(size) / rows if rows else 0.0


def _row(database_url: str, query: str) -> tuple[int, ...]:
    connection = psycopg2.connect(database_url.replace("+psycopg2", ""))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            found = cursor.fetchone()
    finally:
        connection.close()
    return tuple(found) if found else (0,) * 3
