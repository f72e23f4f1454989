"""What the executor uses of Airflow's internals (pinned to 3.0.4; tests/contract/test_airflow_internals.py)."""

from __future__ import annotations

from collections.abc import Mapping

REFUSED = " (not published)"


def airflow_option(section: str, name: str) -> str | None:
    """Return the text of an option of Airflow's configuration; None where it is not set."""
    from airflow.configuration import conf

    value: str | None = conf.get(section, name, fallback=None)
    return value


def report_import_errors(bundle: str, errors: Mapping[str, str]) -> None:
    """Show the errors of a bundle's refused snapshot in the UI, by file, in place of those of the one refused before.

    The names end in `REFUSED`, so that they never meet the names under which Airflow itself keeps import errors
    of the snapshot that is current: parsing one does not clear the other.
    """
    from airflow.models.errors import ParseImportError
    from airflow.utils import timezone
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(ParseImportError).filter(
            ParseImportError.bundle_name == bundle,
            ParseImportError.filename.endswith(REFUSED, autoescape=True),
        ).delete(synchronize_session=False)
        for file, error in errors.items():
            row = ParseImportError(
                bundle_name=bundle,
                filename=file[: 1024 - len(REFUSED)] + REFUSED,
                timestamp=timezone.utcnow(),
                stacktrace=error,
            )
            session.add(row)
