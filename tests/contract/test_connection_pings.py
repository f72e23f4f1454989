"""SQLAlchemy's pool on a real Postgres, pinged as Airflow configures it and only where a connection was idle."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError, OperationalError
from sqlalchemy.pool import base
from tests.support.postgres import Postgres, restart, serve

from airbridge.control_plane.airflow_settings import RECOMMENDED
from airbridge.executor import connection_pings
from airbridge.executor.connection_pings import ping_idle_only

IDLE_SECONDS = 1.0


class Clock:
    """A monotonic clock that stands still until a test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pinging(server: Postgres, clock: Clock) -> Engine:
    """Return an engine that pings only idle connections."""
    engine = create_engine(server.url(), pool_size=3, pool_pre_ping=True)
    ping_idle_only(engine, IDLE_SECONDS, clock)
    return engine


def counted(engine: Engine) -> list[bool]:
    """Return a list to which each ping's result is added."""
    results: list[bool] = []
    original = engine.dialect.do_ping

    def ping(connection: Any) -> bool:
        results.append(bool(original(connection)))
        return results[-1]

    engine.dialect.do_ping = ping
    return results


@pytest.fixture
def engine(postgres: Postgres, clock: Clock) -> Iterator[Engine]:
    engine = pinging(postgres, clock)
    yield engine
    engine.dispose()


@pytest.fixture
def pings(engine: Engine) -> list[bool]:
    return counted(engine)


def backend(engine: Engine) -> int:
    """Return the server's process of the connection that is checked out next."""
    with engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def fill(engine: Engine) -> None:
    """Have as many connections in the pool as it keeps."""
    held = [engine.connect() for _ in range(3)]
    for connection in held:
        connection.execute(text("SELECT 1"))
        connection.close()


def test_only_idle_connections_are_pinged(engine: Engine, clock: Clock, pings: list[bool]) -> None:
    """A new connection and one just returned are not pinged; one that has been idle is."""
    pid = backend(engine)
    clock.now += IDLE_SECONDS / 2
    assert backend(engine) == pid
    assert pings == []
    clock.now += IDLE_SECONDS
    assert backend(engine) == pid
    assert pings == [True]


def test_replaced_pool_pings_alike(engine: Engine, clock: Clock, pings: list[bool]) -> None:
    """A disposed engine, as in a forked process, goes on in the same way with its new pool."""
    engine.dispose()
    backend(engine)
    backend(engine)
    assert pings == []
    clock.now += IDLE_SECONDS
    backend(engine)
    assert pings == [True]


def test_undo_pings_at_every_checkout(postgres: Postgres, clock: Clock) -> None:
    """The pool is pinged by SQLAlchemy again, and by nothing else."""
    engine = create_engine(postgres.url(), pool_pre_ping=True)
    ping_idle_only(engine, IDLE_SECONDS, clock)()
    assert engine.pool._pre_ping is True
    assert not list(engine.pool.dispatch.checkout)
    assert not list(engine.pool.dispatch.checkin)


def test_unpinged_engine_is_left_alone(postgres: Postgres, clock: Clock) -> None:
    """With `sql_alchemy_pool_pre_ping = False` nothing is pinged."""
    engine = create_engine(postgres.url())
    ping_idle_only(engine, IDLE_SECONDS, clock)()
    assert engine.pool._pre_ping is False


def test_pings_happen_at_checkout() -> None:
    """SQLAlchemy pings where it calls the checkout event, and takes both for a disconnection in the same way."""
    assert issubclass(InvalidatePoolError, DisconnectionError)
    assert InvalidatePoolError.invalidate_pool is True
    checkout = inspect.getsource(base._ConnectionFairy._checkout)
    expected = [
        "result = pool._dialect.do_ping(",
        "raise exc.InvalidatePoolError()",
        "pool.dispatch.checkout(",
    ]
    places = [
        checkout.index(part)
        for part in [*expected, "except exc.DisconnectionError as e:", "pool._invalidate("]
    ]
    assert places == sorted(places)
    reconnect = inspect.getsource(base._ConnectionRecord.get_connection)
    assert reconnect.count("self.info.clear()") == reconnect.count("self.__connect()") == 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Postgres]:
    """A server of the test's own, with its data in `tmp_path`."""
    with serve(tmp_path) as running:
        yield running


def test_idle_pool_survives_a_restart(server: Postgres, tmp_path: Path, clock: Clock) -> None:
    """The first checkout after a restart pings a connection that has been idle, and replaces the whole pool."""
    engine = pinging(server, clock)
    fill(engine)
    restart(tmp_path)
    clock.now += IDLE_SECONDS
    pings = counted(engine)
    fill(engine)
    assert pings == [False]
    engine.dispose()


def test_used_connection_fails_after_a_restart(server: Postgres, tmp_path: Path, clock: Clock) -> None:
    """A connection used just before fails as one within a transaction does; after it the whole pool is replaced."""
    engine = pinging(server, clock)
    fill(engine)
    restart(tmp_path)
    pings = counted(engine)
    with pytest.raises(OperationalError) as failed:
        backend(engine)
    assert failed.value.connection_invalidated
    fill(engine)
    assert pings == []
    engine.dispose()


def test_an_idle_scheduler_pings() -> None:
    """What it uses after the idle sleep that AirBridge recommends has been idle for long enough."""
    [sleep] = [each.value for each in RECOMMENDED if each.option == "scheduler_idle_sleep_time"]
    assert connection_pings.IDLE_SECONDS < float(sleep)
