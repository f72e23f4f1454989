"""Inventory of secrets: what each process of a running platform holds is what the docs' tables say, and no more."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import httpx
import psycopg2
import pytest
from tests.security import inventory
from tests.support.platform import LocalPlatform, wait_for

from airbridge.control_plane.local.keys import Keys
from airbridge.control_plane.local.services import postgres
from airbridge.executor.ledger.access import roles
from airbridge.executor.service_secrets import Service

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "secrets-and-rights.md"
PARSED_SLOWLY = """
import time
from airflow.sdk import DAG
time.sleep(20)
with DAG("parsed_slowly", schedule=None):
    pass
"""


@pytest.fixture(scope="module")
def page() -> str:
    """The page with the two tables."""
    return PAGE.read_text()


@pytest.mark.parametrize("service", Service)
def test_process_holds_its_secrets(plain_platform: LocalPlatform, page: str, service: Service) -> None:
    """Environment, memory, open files and configured files of a service: the secrets of the docs' table, and no others."""
    # A first process is forked from another, and /proc has not its environment. Restarted, it is as in a deployment.
    former = plain_platform.kill(service)
    wait_for(
        lambda: plain_platform.component(service).pid not in {None, former}, f"{service} to be restarted"
    )
    plain_platform.wait_ready()
    pid = plain_platform.pid(service)
    found = inventory.held(pid, inventory.known(plain_platform))
    expected = inventory.secrets_in_docs(page)[service] | {inventory.password_of(service)}
    # The gateway is shown the operator's token by each request of the command line.
    allowed = {inventory.OPERATOR_TOKEN} if service is Service.GATEWAY else set()
    assert found.everywhere - allowed == expected
    assert found.environment == frozenset()
    assert inventory.password_of(service) in found.memory, "the search of memory finds what is there"


def test_parsers_hold_nothing(plain_platform: LocalPlatform) -> None:
    """The zygote of the dag-processor, and a process that parses a DAG file, hold no secret of any kind."""
    secrets = inventory.known(plain_platform)
    plain_platform.add_dag("parsed_slowly", PARSED_SLOWLY)
    processor = plain_platform.pid(Service.DAG_PROCESSOR)
    found: dict[int, frozenset[str]] = {}

    def two_inspected() -> bool:
        for pid in inventory.processes(processor)[1:]:
            # A process that parses a file may end while it is read: another one follows.
            try:
                found.setdefault(pid, inventory.held(pid, secrets).everywhere)
            except (ProcessLookupError, FileNotFoundError):
                continue
        return len(found) >= 2

    wait_for(two_inspected, "the zygote and a process that parses a file to be inspected", 120)
    assert set(found.values()) == {frozenset()}


def test_pushed_code_is_parsed_without_secrets(plain_platform: LocalPlatform, tmp_path: Path) -> None:
    """The process in which the gateway parses pushed code holds no secret of any kind."""
    secrets = inventory.known(plain_platform)
    (tmp_path / "pushed_slowly.py").write_text(PARSED_SLOWLY.replace("parsed", "pushed"))
    command = (sys.executable, "-m", "airbridge.control_plane.cli", "dags", "push", str(tmp_path))
    found: dict[int, frozenset[str]] = {}

    def inspected() -> bool:
        for pid in inventory.processes(plain_platform.pid(Service.GATEWAY))[1:]:
            with suppress(ProcessLookupError, FileNotFoundError):
                found[pid] = inventory.held(pid, secrets).everywhere
        return bool(found) and ended()

    def ended() -> bool:
        return pushing.poll() is not None

    with subprocess.Popen([*command, "--dir", str(plain_platform.directory.root)]) as pushing:
        wait_for(inspected, "the push to be parsed", 120)
    assert pushing.returncode == 0
    assert set(found.values()) == {frozenset()}


def test_execution_api_is_the_gateways(plain_platform: LocalPlatform) -> None:
    """The API server does not serve Airflow's Execution API: what its tokens would open is not there."""
    url = f"{plain_platform.state.ui_url}/execution"
    assert "healthy" not in httpx.get(f"{url}/health", follow_redirects=True).text
    # The UI answers every GET with its page.
    assert httpx.patch(f"{url}/task-instances/x/run", json={}).status_code in {404, 405}


def test_edge_holds_nothing(plain_platform: LocalPlatform) -> None:
    """No process of a worker holds a secret of the control plane."""
    secrets = inventory.known(plain_platform)
    time.sleep(1.0)
    for pid in plain_platform.worker_pids().values():
        for each in inventory.processes(pid):
            try:
                found = inventory.held(each, secrets)
            except (ProcessLookupError, FileNotFoundError):
                continue
            assert found.everywhere == frozenset()


@pytest.mark.parametrize("service", Service)
def test_process_connects_under_its_role(plain_platform: LocalPlatform, service: Service) -> None:
    """A service is connected to the database under its own role, which owns, creates and inherits nothing."""
    pid = plain_platform.pid(service)
    wait_for(lambda: bool(inventory.database_roles(plain_platform, pid)), f"{service} to be connected")
    assert inventory.database_roles(plain_platform, pid) == {service.role}
    attributes = plain_platform.query(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication,"
        " EXISTS (SELECT 1 FROM pg_auth_members WHERE member = r.oid),"
        " EXISTS (SELECT 1 FROM pg_class WHERE relowner = r.oid),"
        " has_schema_privilege(r.oid, 'public', 'CREATE') FROM pg_roles r WHERE rolname = %s",
        service.role,
    )
    assert attributes == [(False,) * 8]


@pytest.mark.parametrize("service", Service)
def test_role_has_its_rights(plain_platform: LocalPlatform, page: str, service: Service) -> None:
    """Rights on every table, as Postgres judges them, are those of the docs' table."""
    documented = inventory.rights_in_docs(page)
    assert set(inventory.tables(plain_platform)) == set(documented)
    expected = {
        table: {roles.VERBS[letter] for letter in services[service] if letter != "-"}
        for table, services in documented.items()
    }
    assert inventory.database_rights(plain_platform, service.role) == expected


@pytest.mark.parametrize("service", Service)
@pytest.mark.parametrize("table", roles.APPEND_ONLY)
def test_audit_tables_are_append_only(plain_platform: LocalPlatform, service: Service, table: str) -> None:
    """No service can change, delete or truncate a row, or switch the trigger off that refuses it: Postgres denies it."""
    attempts = (
        f"UPDATE {table} SET {'actor' if table == 'airbridge_audit' else 'hash'} = 'x'",
        f"DELETE FROM {table}",
        f"TRUNCATE {table}",
        f"ALTER TABLE {table} DISABLE TRIGGER USER",
        f"DROP TABLE {table}",
    )
    for attempt in attempts:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match=r"permission denied|must be owner"):
            _as(plain_platform, service, attempt)


@pytest.mark.parametrize("table", ["connection", "variable"])
@pytest.mark.parametrize("service", [Service.DAG_PROCESSOR, Service.SCHEDULER])
def test_connections_are_closed(plain_platform: LocalPlatform, service: Service, table: str) -> None:
    """Neither the service that parses DAGs nor the one that schedules them can read a connection or a variable."""
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        _as(plain_platform, service, f"SELECT * FROM {table}")


def _as(platform: LocalPlatform, service: Service, statement: str) -> None:
    """Run a statement with a service's role and password."""
    keys = Keys.model_validate_json(platform.directory.keys_file.read_bytes())
    url = platform.database.url_of(service.role, keys.service_passwords[service]).replace("+psycopg2", "")
    with closing(psycopg2.connect(url)) as connection:
        postgres.fetch(connection, statement)
