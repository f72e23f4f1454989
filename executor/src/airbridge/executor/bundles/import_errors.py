"""Import errors in the UI of what a bundle's source has and does not publish."""

from __future__ import annotations

from collections.abc import Sequence

import structlog
from sqlalchemy import exc as sql

from airbridge.core.exceptions import ParseFailure
from airbridge.executor._airflow import report_import_errors

log = structlog.get_logger(__name__)

# Refreshes, at an unchanged version, after which Airflow keeps what was reported: it drops the import errors of a bundle
# after the first refresh of its process, and after each that brought a new version (`DagFileProcessorManager`).
_KEPT_AFTER = 2


class ImportErrors:
    """Import errors of one bundle, as this process reported them last."""

    def __init__(self, bundle: str) -> None:
        self._bundle = bundle
        self._any: bool | None = None
        self._unchanged = 0

    def show(self, failures: Sequence[ParseFailure], *, changed: bool = False) -> None:
        """Show these errors and no others, each time anew. `changed`: the refresh brought a new version.

        Where the database cannot be had (a task's process), they are only logged.
        """
        self._unchanged = 0 if changed else self._unchanged + 1
        if not failures and self._any is False:
            return
        try:
            report_import_errors(self._bundle, _by_file(failures))
        except (sql.SQLAlchemyError, RuntimeError) as error:
            # Airflow refuses sessions in a task's process by a RuntimeError.
            log.warning("bundle.errors_not_shown", bundle=self._bundle, error=str(error))
            return
        self._any = bool(failures)

    @property
    def may_be_dropped(self) -> bool:
        """True if Airflow drops what is shown before the next refresh."""
        return bool(self._any) and self._unchanged < _KEPT_AFTER


def _by_file(failures: Sequence[ParseFailure]) -> dict[str, str]:
    """One text a file, as the UI lists import errors."""
    texts: dict[str, str] = {}
    for failure in failures:
        texts[failure.file] = "\n".join(filter(None, [texts.get(failure.file), str(failure)]))
    return texts
