"""Inventory of a running platform: the secrets that can be read from each process, and the rights of its database role."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.support.platform import LocalPlatform

from airbridge.control_plane.local.keys import Keys
from airbridge.executor.ledger.access import roles
from airbridge.executor.service_secrets import FILES, Secret, Service

OWNER = "password of the database's owner"
OPERATOR_TOKEN = "operator's token"
ROOT_KEY = "root CA key"
_CHUNK = 16 * 1024 * 1024


def password_of(service: Service) -> str:
    """The name of the secret that is a service's password in the database."""
    return f"password of {service.role}"


def known(platform: LocalPlatform) -> dict[str, tuple[bytes, ...]]:
    """Every secret of the platform's control plane, by name: its text, and what a program keeps of it."""
    keys = Keys.model_validate_json(platform.directory.keys_file.read_bytes())
    folder = platform.directory.secrets
    found: dict[str, tuple[bytes, ...]] = {
        Secret.FERNET_KEY: _fernet(keys.fernet_key),
        Secret.JWT_SECRET: (keys.jwt_secret.encode(),),
        Secret.API_SECRET_KEY: (keys.api_secret_key.encode(),),
        OWNER: (keys.database_password.encode(),),
        OPERATOR_TOKEN: (platform.directory.operator_token_file.read_bytes().strip(),),
        ROOT_KEY: _pem((folder / "offline-root" / "root.key").read_bytes()),
    }
    found |= {secret: _pem((folder / name).read_bytes()) for secret, name in FILES.items()}
    found |= {password_of(each): (keys.service_passwords[each].encode(),) for each in Service}
    return found


def _fernet(text: str) -> tuple[bytes, ...]:
    raw = base64.urlsafe_b64decode(text)
    return (text.encode(), raw[:16], raw[16:])


def _pem(pem: bytes) -> tuple[bytes, ...]:
    """A key's text without its first and last line, and its raw number as the libraries keep it."""
    body = pem.splitlines()[1]
    key = load_pem_private_key(pem, password=None)
    if isinstance(key, Ed25519PrivateKey):
        return (body, key.private_bytes_raw())
    assert isinstance(key, EllipticCurvePrivateKey)
    number = key.private_numbers().private_value
    return (body, number.to_bytes(32, "big"), number.to_bytes(32, "little"))


@dataclass(frozen=True)
class Held:
    """Names of the secrets found in each place of a process."""

    environment: frozenset[str]
    memory: frozenset[str]
    descriptors: frozenset[str]
    files: frozenset[str]

    @property
    def everywhere(self) -> frozenset[str]:
        """All of them."""
        return self.environment | self.memory | self.descriptors | self.files


def processes(pid: int) -> list[int]:
    """A process and all that it has started. Raises `ProcessLookupError` if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    raise ProcessLookupError(pid)


def held(pid: int, secrets: Mapping[str, tuple[bytes, ...]]) -> Held:
    """Search one process: its environment, memory, open files, and what its configuration names."""
    process = Path(f"/proc/{pid}")
    environ = (process / "environ").read_bytes()
    return Held(
        environment=_names([environ, (process / "cmdline").read_bytes()], secrets),
        memory=_names(memory_of(pid), secrets),
        descriptors=_names(_contents(_open_files(process)), secrets),
        files=_names(_contents(_configured(environ)), secrets),
    )


def _names(parts: Iterable[bytes], secrets: Mapping[str, tuple[bytes, ...]]) -> frozenset[str]:
    left, found = dict(secrets), set()
    for part in parts:
        more = {name for name, forms in left.items() if any(form in part for form in forms)}
        found |= more
        left = {name: forms for name, forms in left.items() if name not in more}
    return frozenset(found)


def memory_of(pid: int) -> Iterator[bytes]:
    """The writable memory of a process, in overlapping chunks."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in maps:
            span, mode, *_ = line.split()
            if not mode.startswith("rw"):
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            for place in range(start, end, _CHUNK):
                try:
                    memory.seek(place)
                    yield memory.read(min(_CHUNK + 4096, end - place))
                except (OSError, OverflowError, ValueError):
                    break


def _open_files(process: Path) -> Iterator[Path]:
    for entry in (process / "fd").iterdir():
        with suppress(OSError):
            target = entry.readlink()
            # Logs are the platform's own, and hold no secret: the test of secrets in logs reads them.
            if target.is_file() and target.suffix != ".log":
                yield target


def _configured(environ: bytes) -> Iterator[Path]:
    """Every file of the folders that a process is configured with; links are followed, as the process would."""
    variables = dict(line.partition("=")[::2] for line in environ.decode(errors="replace").split("\0"))
    for name in ("AIRFLOW_CONFIG", "AIRFLOW_HOME"):
        path = Path(variables.get(name) or "/nowhere")
        folder = path if path.is_dir() else path.parent
        if folder != Path("/"):
            yield from (each for each in folder.rglob("*") if each.is_file())


def _contents(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with suppress(OSError):
            yield path.read_bytes()


def database_roles(platform: LocalPlatform, pid: int) -> set[str]:
    """The roles as which a process and its children are connected to the database."""
    ports: set[int] = set()
    for each in processes(pid):
        with suppress(psutil.Error):
            ports |= {
                found.laddr.port
                for found in psutil.Process(each).net_connections("tcp")
                if found.raddr and found.raddr.port == platform.database.port
            }
    rows = platform.query("SELECT usename, client_port FROM pg_stat_activity WHERE client_port IS NOT NULL")
    return {role for role, port in rows if port in ports}


def database_rights(platform: LocalPlatform, role: str) -> dict[str, set[str]]:
    """The rights of a role on each table, of any column too, as Postgres itself judges them."""
    verbs = (*roles.VERBS.values(), *roles.NEVER)
    rows = platform.query(
        """
        SELECT c.relname, verb FROM pg_class c, unnest(%s) verb
        WHERE c.relkind IN ('r', 'p', 'v', 'm') AND c.relnamespace = 'public'::regnamespace
          AND (has_table_privilege(%s, c.oid, verb)
               OR verb IN ('SELECT', 'INSERT', 'UPDATE') AND has_any_column_privilege(%s, c.oid, verb))
        """,
        list(verbs),
        role,
        role,
    )
    found: dict[str, set[str]] = {table: set() for table in tables(platform)}
    for table, verb in rows:
        found[table].add(verb)
    return found


def tables(platform: LocalPlatform) -> list[str]:
    """Every table of the database."""
    rows = platform.query(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm') AND relnamespace = 'public'::regnamespace"
    )
    return sorted(row[0] for row in rows)


def rights_in_docs(page: str) -> dict[str, dict[str, str]]:
    """The letters of each table and service in the page's table of database rights."""
    head, _, *rows = re.findall(r"^\|.*\|$", page.partition("## Database rights")[2], re.MULTILINE)
    services = [cell.strip() for cell in head.strip("|").split("|")][1:]
    found = {}
    for row in rows:
        name, *letters = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        found[name] = dict(zip(services, letters, strict=True))
    return found


def secrets_in_docs(page: str) -> dict[str, set[str]]:
    """The secrets of each service in the page's table of secrets."""
    section = page.partition("## Secrets")[2].partition("\n## ")[0]
    head, _, *rows = re.findall(r"^\|.*\|$", section, re.MULTILINE)
    services = [cell.strip() for cell in head.strip("|").split("|")][1:]
    found: dict[str, set[str]] = {service: set() for service in services}
    for row in rows:
        name, *cells = (cell.strip().strip("`") for cell in row.strip("|").split("|"))
        for service, cell in zip(services, cells, strict=True):
            if cell:
                found[service].add(name)
    return found
