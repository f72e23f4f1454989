"""The simulated power cut: what was synced is there, what was not is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.chaos import power

ROOT = Path(__file__).parents[2]
WRITE = """
import os, sqlite3, sys
from pathlib import Path
from tests.chaos import power

path, durable, synchronous = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
power.keep_what_is_synced(path, durable)
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA synchronous = FULL")
connection.execute("PRAGMA wal_autocheckpoint = 20")
connection.execute("CREATE TABLE t (n, pad)")
for n in range(100):
    connection.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 500))
connection.execute(f"PRAGMA synchronous = {synchronous}")
for n in range(100, 110):
    connection.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 500))
os._exit(0)
"""


@pytest.mark.parametrize(("synchronous", "left"), [("FULL", 110), ("OFF", 100)])
def test_what_was_synced_survives(tmp_path: Path, synchronous: str, left: int) -> None:
    """Over many checkpoints, exactly the commits that SQLite synced are there after the cut."""
    import sqlite3

    database, durable = tmp_path / "state" / "db.sqlite", tmp_path / "durable"
    database.parent.mkdir()
    durable.mkdir()
    command = [sys.executable, "-c", WRITE, str(database), str(durable), synchronous]
    subprocess.run(command, check=True, cwd=ROOT)
    power.restore(database, durable, mark_survives=True)
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (left,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        connection.close()
