"""Signed join requests that were used: each is good once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, exc

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import JoinProofRow


def use(session: Any, digest: str, worker_id: str, remembered: timedelta) -> bool:
    """Note that a request is used now; False if it was used before. Forgets those older than `remembered`."""
    now = clock.now(session)
    session.execute(
        delete(JoinProofRow)
        .where(JoinProofRow.used_at < now - remembered)
        .execution_options(synchronize_session=False)
    )
    try:
        with session.begin_nested():
            session.add(JoinProofRow(digest=digest, worker_id=worker_id, used_at=now))
    except exc.IntegrityError:
        return False
    return True
