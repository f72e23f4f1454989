"""Import errors of published files name the author's file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.airflow_home import Metadata

from airbridge.control_plane.dag_processing import _airflow

VERSION = "/var/lib/airbridge/bundles/dags/versions/sha256:" + 64 * "a"
TEXT = f"Traceback:\n  File \"{VERSION}/team/two.py\", line 3, in <module>\nNameError: name 'x'\n"


@pytest.fixture
def installed() -> Iterator[None]:
    from airflow.dag_processing import collection

    original = collection._update_import_errors
    _airflow.name_own_files()
    yield
    collection._update_import_errors = original


def recorded(metadata: Metadata) -> dict[str, str]:
    from airflow.models.errors import ParseImportError

    with metadata.session() as session:
        return {row.filename: row.stacktrace for row in session.query(ParseImportError)}


def parsed(metadata: Metadata, errors: dict[str, str], good: set[str]) -> None:
    from airflow.dag_processing import collection

    with metadata.session() as session:
        collection._update_import_errors(
            files_parsed=good, bundle_name="dags", import_errors=errors, session=session
        )
        session.commit()


def test_import_error_names_own_file(sqlite_metadata: Metadata, installed: None) -> None:
    """An import error has the name of the file in the author's folder, in its text as well, once; and goes when the file parses."""
    for _ in range(2):
        parsed(sqlite_metadata, {f"{VERSION}/team/two.py": TEXT}, set())
        assert recorded(sqlite_metadata) == {"team/two.py": TEXT.replace(f"{VERSION}/", "")}
    parsed(sqlite_metadata, {}, {f"{VERSION}/team/two.py"})
    assert recorded(sqlite_metadata) == {}


def test_other_paths_stay(sqlite_metadata: Metadata, installed: None) -> None:
    """Files of other bundles keep their paths."""
    parsed(sqlite_metadata, {"/srv/dags/one.py": TEXT}, set())
    assert recorded(sqlite_metadata) == {"/srv/dags/one.py": TEXT}
