"""Sessions of the database that code called by Airflow may open."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_scoped_session() -> None:
    """Every session is unscoped: closing the thread's own one detaches what an Airflow function up the stack has yet to change."""
    sources = [path for name in ("executor", "control_plane") for path in ROOT.glob(f"{name}/src/**/*.py")]
    calls = [
        f"{path.relative_to(ROOT)}: {call}"
        for path in sources
        for call in re.findall(r"(?:create_session\((?!scoped=False\)).*|@provide_session)", path.read_text())
    ]
    assert sources
    assert calls == []
