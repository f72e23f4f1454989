"""Unit of work: writes of the ledger and of Airflow's own code in one database transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exc as sql

from airbridge.control_plane import _airflow
from airbridge.control_plane._airflow import Answer, ExecutionApp
from airbridge.control_plane.gateway.auth.task_permissions import Call


class RolledBack(Exception):  # noqa: N818 - says what happened
    """Airflow's code rolled the transaction back during a call; nothing of it may be committed.

    `answer` is the response it returned nevertheless, to be stored when the other records are applied again.
    """

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"rolled back while answering {answer.status}")
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Unit:
    """Open transaction. `session` is for the ledger; Airflow's code gets its own sessions on the connection."""

    connection: Any
    root: Any
    session: Any

    def call(self, app: ExecutionApp, call: Call) -> Answer:
        """Make a call of a task inside this transaction.

        Raises `RolledBack` if Airflow's code rolled back, and the exceptions of `ExecutionApp.call`.
        """
        with (
            _airflow.session_on(self.connection) as given,
            _airflow.session_on(self.connection) as ambient,
            _airflow.thread_session(ambient),
        ):
            answer = app.call(given, call.method, call.path, call.query, call.body)
            if self.root.is_active:
                given.flush()
        if not self.root.is_active:
            raise RolledBack(answer)
        return answer

    def apply(self, change: Callable[[Any], None]) -> None:
        """Let Airflow's own code change something inside this transaction. Raises `RolledBack` if it rolled back."""
        with (
            _airflow.session_on(self.connection) as given,
            _airflow.session_on(self.connection) as ambient,
            _airflow.thread_session(ambient),
        ):
            change(given)
            if self.root.is_active:
                given.flush()
        if not self.root.is_active:
            raise RolledBack(Answer(500))


@contextmanager
def unit() -> Iterator[Unit]:
    """Open a transaction; commit it at the end of the block, or roll it back if the block raises."""
    with _airflow.engine().connect() as connection, connection.begin() as root:
        with _airflow.session_on(connection) as session:
            yield Unit(connection, root, session)
            session.flush()
        if not root.is_active:
            raise RolledBack(Answer(500))


def transient(error: BaseException) -> bool:
    """Return whether a retry may succeed: the database was down, busy or in a deadlock."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, sql.OperationalError | sql.InterfaceError | sql.TimeoutError):
            return not _exceeds_a_limit(each)
        if isinstance(each, sql.DBAPIError) and each.connection_invalidated:
            return True
        todo += [each.__cause__, each.__context__]
    return False


def _exceeds_a_limit(error: BaseException) -> bool:
    """Return whether a value exceeds a limit of PostgreSQL's, like the size of an index entry: class 54 of its errors."""
    code = getattr(getattr(error, "orig", None), "pgcode", None)
    return isinstance(code, str) and code.startswith("54")


def is_unstorable(error: BaseException) -> bool:
    """Return whether a value of the request cannot be stored: a number out of range, a NUL in a text."""
    if isinstance(error, sql.DataError) or _exceeds_a_limit(error):
        return True
    return isinstance(error, ValueError) and "NUL (0x00)" in str(
        error
    )  # psycopg2's words, and no error of the DB-API
