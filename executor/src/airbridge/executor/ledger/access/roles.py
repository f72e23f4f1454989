"""Rights of each service's database role, and the statements that grant them. Nothing of Airflow is imported here.

`airflow db migrate` makes the roles, without a login, and grants anew after every migration. A deployment then gives each
a password and LOGIN, and a service the name of its role in place of the owner's.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import structlog

from airbridge.executor.service_secrets import Choices, Service

log = structlog.get_logger(__name__)

# Runs one statement and returns its rows, if any.
Execute = Callable[[str], Sequence[Any]]
# Letters of `VERBS` by service.
Rights = Mapping[Service, str]

VERBS: Final = {"S": "SELECT", "I": "INSERT", "U": "UPDATE", "D": "DELETE"}
# Nobody but the owner has these on any table.
NEVER: Final = ("TRUNCATE", "REFERENCES", "TRIGGER")
# Only ever added to, whoever writes: neither UPDATE nor DELETE for any role.
APPEND_ONLY: Final = ("airbridge_audit", "airbridge_audit_seal")

# What other managers of [database] external_db_managers create, such as the FAB auth manager, is the API server's.
_UNKNOWN: Final = "SIUD - - - -"

# Table, then the rights of api-server, scheduler, dag-processor, triggerer and gateway.
_TABLE: Final = """
alembic_version                     S    S    S    S    S
airbridge_alembic_version           S    S    S    S    S
connection                          SIUD -    -    S    S
variable                            SIUD -    -    S    SIUD
slot_pool                           SIUD SU   S    S    S
job                                 S    SIU  SIU  SIU  S
log                                 SI   SI   SI   SI   SI
log_template                        S    S    S    S    S
callback_request                    -    SI   SUD  SI   SI
import_error                        SD   S    SIUD -    S
dag                                 SUD  SU   SIU  S    S
dag_bundle                          S    S    SIU  S    S
dag_code                            SD   S    SIUD -    S
dag_version                         SD   S    SIUD S    S
serialized_dag                      SD   S    SIUD S    S
dag_tag                             SD   S    SIUD S    S
dag_owner_attributes                SD   S    SIUD S    S
dag_warning                         SD   SIUD SIUD -    S
dag_priority_parsing_request        SID  -    SD   -    -
dag_schedule_asset_alias_reference  SD   S    SIUD S    S
dag_schedule_asset_name_reference   SD   S    SIUD S    S
dag_schedule_asset_reference        SD   S    SIUD S    S
dag_schedule_asset_uri_reference    SD   S    SIUD S    S
task_outlet_asset_reference         SD   S    SIUD S    S
asset                               SIU  S    SIU  S    SIU
asset_active                        SIUD SIUD SIUD S    SIUD
asset_alias                         SIU  SIU  SIU  SIU  SIU
asset_alias_asset                   SID  SI   SID  SI   SID
asset_alias_asset_event             SID  SI   -    SI   SI
asset_dag_run_queue                 SIUD SIUD SD   SIU  SIUD
asset_event                         SI   SI   -    SI   SI
asset_trigger                       S    SD   SIUD SUD  S
dagrun_asset_event                  SID  SID  -    S    SID
backfill                            SIUD SU   -    S    S
backfill_dag_run                    SIUD SIU  -    S    S
deadline                            SIUD SIUD -    S    SIUD
dag_run                             SIUD SIUD S    SU   SIU
dag_run_note                        SIUD SD   -    S    S
task_instance                       SIUD SIUD S    SU   SIU
task_instance_history               SIUD SI   -    SI   SI
task_instance_note                  SIUD SIUD -    S    SIUD
task_map                            SIUD SIUD -    S    SIUD
task_reschedule                     SIUD SD   -    SD   SID
rendered_task_instance_fields       SIUD SD   -    S    SIUD
trigger                             SIUD SIUD SIUD SUD  SIUD
xcom                                SIUD SD   -    SID  SIUD
airbridge_audit                     SI   -    SI   -    SI
airbridge_audit_seal                S    -    -    -    SI
airbridge_audit_unsealed            SI   -    I    -    SID
airbridge_token                     -    -    -    -    SIU
airbridge_proposal                  -    -    -    -    SIU
airbridge_revocation                SI   -    -    -    SIUD
airbridge_certificate               -    -    -    -    SIUD
airbridge_join_proof                -    -    -    -    SID
airbridge_bound_key                 -    -    -    -    SIUD
airbridge_worker                    SU   S    -    -    SIUD
airbridge_bundle                    S    S    SIU  -    SIU
airbridge_snapshot                  S    S    SIU  -    SIU
airbridge_environment               -    -    S    -    SIUD
airbridge_work_item                 S    SIUD -    -    SIU
airbridge_record                    -    SD   -    -    SI
airbridge_event                     SI   SID  SI   -    SI
airbridge_usage                     S    SIU  -    -    S
airbridge_limit                     -    -    -    -    SIU
airbridge_limit_start               S    S    -    -    SID
airbridge_gateway                   S    -    -    -    SIUD
airbridge_export                    -    -    -    -    SIU
"""


def rights(table: str, choices: Choices | None = None) -> Rights:
    """Return the rights on a table, for the services that have any."""
    letters = TABLES.get(table, _UNKNOWN).split()
    found = dict(zip(Service, letters, strict=True))
    if choices is not None:
        read = {"connection": choices.parse_connections, "variable": choices.parse_variables}
        if read.get(table):
            found[Service.DAG_PROCESSOR] = "S"
    return {service: given for service, given in found.items() if given != "-"}


def apply(execute: Execute, choices: Choices | None = None) -> None:
    """Make the roles that do not exist, and grant to each what `rights` says and nothing else.

    Idempotent; to be run in one transaction by the tables' owner, on Postgres. Without the right to create roles, those that
    an administrator has made are granted to, and the others are named in a warning.
    """
    missing = {service.role for service in Service} - _existing(execute)
    if (
        missing
        and execute("SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user")[0][0]
    ):
        for role in sorted(missing):
            execute(_create(role))
        missing = set()
    if missing:
        log.warning(
            "database_roles.missing", roles=sorted(missing), why="the migrating user may not create roles"
        )
    services = [service for service in Service if service.role not in missing]
    for statement in statements(services, _sequences(execute), choices):
        execute(statement)


def statements(
    services: Sequence[Service], sequences: Mapping[str, Sequence[str]], choices: Choices | None = None
) -> Iterator[str]:
    """Yield the statements that leave these services the rights of the table. `sequences` are those of each table."""
    if not services:
        return
    roles = ", ".join(service.role for service in services)
    yield f"REVOKE ALL ON {_names('TABLE', sequences)} FROM {roles}"
    owned = [name for names in sequences.values() for name in names]
    if owned:
        yield f"REVOKE ALL ON {_names('SEQUENCE', owned)} FROM {roles}"
    for table, names in sequences.items():
        for service, letters in rights(table, choices).items():
            if service not in services:
                continue
            yield f'GRANT {", ".join(VERBS[letter] for letter in letters)} ON TABLE "{table}" TO {service.role}'
            if "I" in letters and names:
                yield f"GRANT USAGE ON {_names('SEQUENCE', names)} TO {service.role}"


def login(role: str, password: str, iterations: int = 4096) -> str:
    """Return the statement that lets a service use its role with this password, which must be ASCII.

    The statement has SCRAM's verifier (RFC 5803) in place of the password, since servers log such statements.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    stored = hashlib.sha256(_keyed(salted, b"Client Key")).digest()
    keys = ":".join(base64.b64encode(key).decode() for key in (stored, _keyed(salted, b"Server Key")))
    verifier = f"SCRAM-SHA-256${iterations}:{base64.b64encode(salt).decode()}${keys}"
    return f"ALTER ROLE {role} LOGIN PASSWORD '{verifier}'"


def _keyed(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, "sha256")


def _create(role: str) -> str:
    # Roles belong to the server: another database's migration may create the same ones now.
    return f"""
        DO $$ BEGIN CREATE ROLE {role} NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$
    """


def _existing(execute: Execute) -> set[str]:
    known = {row[0] for row in execute("SELECT rolname FROM pg_roles")}
    return {service.role for service in Service} & known


def _sequences(execute: Execute) -> Mapping[str, Sequence[str]]:
    """Return every table of the schema, with the sequences that its columns own."""
    found: dict[str, list[str]] = {}
    for table, sequence in execute(_TABLES_AND_SEQUENCES):
        found.setdefault(table, []).extend([sequence] if sequence else [])
    return found


def _names(kind: str, names: Iterable[str]) -> str:
    return f"{kind} " + ", ".join(f'"{name}"' for name in names)


_TABLES_AND_SEQUENCES: Final = """
    SELECT t.relname, s.relname
    FROM pg_class t
    LEFT JOIN pg_depend d ON d.refobjid = t.oid AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
        AND d.refclassid = 'pg_class'::regclass
        AND EXISTS (SELECT 1 FROM pg_class q WHERE q.oid = d.objid AND q.relkind = 'S')
    LEFT JOIN pg_class s ON s.oid = d.objid
    WHERE t.relkind IN ('r', 'p') AND t.relnamespace = current_schema()::regnamespace
    ORDER BY t.relname, s.relname
"""
TABLES: Final = {
    name: rights for name, _, rights in (line.partition(" ") for line in _TABLE.strip().splitlines())
}
