"""Pings of pooled database connections: only of those that have been idle (tests/contract/test_connection_pings.py).

With `[database] sql_alchemy_pool_pre_ping` SQLAlchemy sends ``SELECT 1`` at every checkout, in the scheduler and in the gateway once a
transaction. That tells whether a connection that lay in the pool has been cut. One that has just been used is as
likely cut within a transaction, where no ping helps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

# Shorter than the idle sleep that AirBridge recommends: an idle scheduler still pings what it uses after its sleep.
IDLE_SECONDS: Final = 0.1
_RETURNED_AT: Final = "airbridge.returned_at"


def ping_idle_only(
    engine: Any, idle_seconds: float = IDLE_SECONDS, monotonic: Callable[[], float] = time.monotonic
) -> Callable[[], None]:
    """Ping connections of an engine that were returned longer ago than `idle_seconds`; return a function that undoes it.

    A connection that does not answer invalidates the pool, and the checkout gets a new one, as with the ping at every checkout.
    An engine that does not ping is left as it is.
    """
    from sqlalchemy import event
    from sqlalchemy.exc import InvalidatePoolError

    pool = engine.pool
    if not pool._pre_ping:  # noqa: SLF001  # it has no public name
        return lambda: None

    def returned(_connection: Any, record: Any) -> None:
        record.info[_RETURNED_AT] = monotonic()

    def checked_out(connection: Any, record: Any, _fairy: Any) -> None:
        # A new connection has none: SQLAlchemy clears `info` when it connects.
        returned_at = record.info.get(_RETURNED_AT)
        if returned_at is None or monotonic() - returned_at < idle_seconds:
            return
        if not engine.dialect.do_ping(connection):
            raise InvalidatePoolError

    def undo() -> None:
        engine.pool._pre_ping = True  # noqa: SLF001
        event.remove(pool, "checkin", returned)
        event.remove(pool, "checkout", checked_out)

    event.listen(pool, "checkin", returned)
    event.listen(pool, "checkout", checked_out)
    pool._pre_ping = False  # noqa: SLF001
    return undo
