"""Proofs of joins that were used: a signed request is good once, a token of an issuer for one name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, exc

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.identity.models import JoinProofRow


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


def bind(session: Any, digest: str, worker_id: str, lasts: timedelta, remembered: timedelta) -> bool:
    """Note that a worker uses a token that lasts so long; False if another worker has used it.

    `remembered` is the time after which `use` forgets a row.
    """
    row = session.get(JoinProofRow, digest)
    if row is None:
        # A row is forgotten by the time of its use, so a token that is good for longer counts as used later.
        row = JoinProofRow(
            digest=digest,
            worker_id=worker_id,
            used_at=clock.now(session) + max(lasts - remembered, timedelta(0)),
        )
        try:
            with session.begin_nested():
                session.add(row)
        except exc.IntegrityError:
            row = session.get(JoinProofRow, digest, populate_existing=True)
    return row is not None and row.worker_id == worker_id
