"""Faults of placing: those of the database, which pass, and those of one task, which would come again."""

from __future__ import annotations

from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError, StatementError


def of_database(error: Exception) -> bool:
    """Return whether an error is the database's, or another transaction's, and not of a value that a task brings."""
    if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
        return False
    return isinstance(error, SQLAlchemyError) and not isinstance(error, DataError)


def unexpected(error: Exception) -> str:
    """Return the reason of a refusal that no rule foresees."""
    said = " ".join(str(getattr(error, "orig", None) or error).replace("\0", "").split())
    return f"it cannot be placed: {type(error).__name__}: {said}; the scheduler's log has the traceback"
