"""Database roles of the services, on Postgres: what a migration grants, to whom, and what a second one leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import exc
from tests.support.airflow_home import Metadata

from airbridge.executor.ledger import manager
from airbridge.executor.ledger.access import logins, roles
from airbridge.executor.service_secrets import Choices, Service


def granted(metadata: Metadata, role: str) -> dict[str, str]:
    """The letters of a role's rights on each table on which it has any."""
    with metadata.engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT table_name, privilege_type FROM information_schema.role_table_grants WHERE grantee = %s",
            (role,),
        ).all()
    found: dict[str, set[str]] = {}
    for table, verb in rows:
        found.setdefault(table, set()).add(verb)
    return {
        table: "".join(letter for letter, verb in roles.VERBS.items() if verb in verbs)
        for table, verbs in found.items()
        if verbs <= set(roles.VERBS.values())
    }


def run_as(metadata: Metadata, service: Service, statement: str) -> None:
    """Run a statement as a service's role, and undo it."""
    with metadata.engine.connect() as connection, connection.begin() as transaction:
        connection.exec_driver_sql(f"SET LOCAL ROLE {service.role}")
        try:
            connection.exec_driver_sql(statement)
        finally:
            transaction.rollback()


@pytest.mark.parametrize("service", Service)
def test_migration_grants_the_table(postgres_metadata: Metadata, service: Service) -> None:
    """After `airflow db migrate` a role has the rights of the table, and a second migration changes nothing."""
    expected = {table: given[service] for table in roles.TABLES if service in (given := roles.rights(table))}
    assert granted(postgres_metadata, service.role) == expected
    manager.grant()
    assert granted(postgres_metadata, service.role) == expected


def test_every_table_is_listed(postgres_metadata: Metadata) -> None:
    """Each table that Airflow and the ledger make has its line: none falls to the rule for unknown ones."""
    with postgres_metadata.engine.connect() as connection:
        made = {
            row[0]
            for row in connection.exec_driver_sql(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            )
        }
    assert made == set(roles.TABLES)


def test_excess_rights_are_taken_back(postgres_metadata: Metadata) -> None:
    """What somebody granted by hand is gone after the next migration."""
    with postgres_metadata.engine.begin() as connection:
        connection.exec_driver_sql("GRANT ALL ON connection, airbridge_audit TO airbridge_scheduler")
    manager.grant()
    found = granted(postgres_metadata, Service.SCHEDULER.role)
    assert "connection" not in found
    assert "airbridge_audit" not in found


def test_unknown_table_is_the_api_servers(postgres_metadata: Metadata) -> None:
    """A table of another manager, such as the FAB auth manager's, is open to the API server alone, with its sequence."""
    with postgres_metadata.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE ab_user (id serial PRIMARY KEY, name text)")
    manager.grant()
    run_as(postgres_metadata, Service.API_SERVER, "INSERT INTO ab_user (name) VALUES ('ann')")
    with pytest.raises(exc.ProgrammingError, match="permission denied for table ab_user"):
        run_as(postgres_metadata, Service.GATEWAY, "SELECT * FROM ab_user")


def test_rows_get_their_numbers(postgres_metadata: Metadata) -> None:
    """A role that may insert may use the table's sequence; the row's trigger works under its rights too."""
    row = "VALUES (now(), 'e', 'changed', 'a', '{}')"
    run_as(
        postgres_metadata,
        Service.DAG_PROCESSOR,
        f"INSERT INTO airbridge_audit (at, event, verdict, actor, detail) {row} RETURNING id",
    )


@pytest.mark.parametrize(
    ("option", "table"), [("parse_connections", "connection"), ("parse_variables", "variable")]
)
def test_parsing_may_read(option: str, table: str) -> None:
    """The setting that lets DAG files read connections or variables gives the dag-processor SELECT, on that table alone."""
    given = roles.rights(table, Choices(**{option: "public_*"}))
    assert given[Service.DAG_PROCESSOR] == "S"
    assert Service.DAG_PROCESSOR not in roles.rights(table, Choices())
    assert Service.SCHEDULER not in given


def test_migration_without_createrole() -> None:
    """A migrating user who may not create roles grants to those that an administrator has made, and goes on."""
    ran: list[str] = []

    def execute(statement: str) -> Sequence[Any]:
        ran.append(statement)
        return next((rows for part, rows in answers.items() if part in statement), [])

    answers: dict[str, Sequence[Any]] = {
        "SELECT rolname": [("postgres",), (Service.GATEWAY.role,)],
        "rolcreaterole": [(False,)],
        "pg_depend": [("connection", None)],
    }
    roles.apply(execute)
    assert not [statement for statement in ran if "CREATE ROLE" in statement]
    assert ran[-1] == f'GRANT SELECT ON TABLE "connection" TO {Service.GATEWAY.role}'


def test_login_is_set_without_the_password(
    postgres_metadata: Metadata, capsys: pytest.CaptureFixture[str]
) -> None:
    """`logins` gives a role its login by a SCRAM verifier; the statement, which servers log, has no password."""
    secret = "a-password-of-the-test"
    try:
        assert logins.main({"AIRBRIDGE_SECRET_DATABASE_API_SERVER": secret}) == 0
        assert capsys.readouterr().out == "logins set: airbridge_api_server\n"
        with postgres_metadata.engine.connect() as connection:
            rows = connection.exec_driver_sql(
                "SELECT rolpassword LIKE 'SCRAM-SHA-256$4096:%%' FROM pg_authid WHERE rolname = 'airbridge_api_server' AND rolcanlogin"
            ).all()
        assert rows == [(True,)]
        assert secret not in roles.login("airbridge_api_server", secret)
    finally:
        with postgres_metadata.engine.begin() as connection:
            connection.exec_driver_sql("ALTER ROLE airbridge_api_server NOLOGIN PASSWORD NULL")


def test_missing_passwords_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Without any password the command says which variable it wants."""
    assert logins.main({}) == 1
    assert "AIRBRIDGE_SECRET_DATABASE_GATEWAY" in capsys.readouterr().err
