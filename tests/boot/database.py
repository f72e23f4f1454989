"""The database instance that Terraform made: Postgres with TLS, under the instance's name and port, with the owner that AWS would make.

As in RDS, the owner is no superuser: it may make roles and databases.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme
from tests.boot.account import Account
from tests.boot.network import Network
from tests.boot.wires import command

from airbridge.control_plane.local.process.privileges import child_setup, postgres_user

ADDRESS = "10.77.0.3"
_PORT = 5432


def programs() -> Path:
    """Return the folder of Postgres's programs, of a Postgres that has TLS (Debian's)."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise RuntimeError("no Postgres with TLS: apt-get install postgresql")
    return found[-1].parent


@contextmanager
def database(account: Account, network: Network, folder: Path, secret_arn: str, name: str) -> Iterator[Path]:
    """The database under the name that the stacks give it; yields the socket's folder, which only this machine's user `postgres` uses."""
    owner = json.loads(account.client("secretsmanager").get_secret_value(SecretId=secret_arn)["SecretString"])
    network.add_address(ADDRESS, name)
    data = folder / "database"
    data.mkdir(mode=0o700)
    _create(network.authority, data, name)
    port = _free_port()
    process = _start(data, port)
    try:
        _wait(data, port, process)
        _make_owner(data, port, owner["username"], owner["password"])
        network.forward(ADDRESS, _PORT, ("127.0.0.1", port))
        yield data
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def _create(authority: trustme.CA, data: Path, name: str) -> None:
    _own(data)
    _as_postgres(programs() / "initdb", "-D", data / "pg", "-U", "rdsadmin", "--auth=trust", "--no-sync")
    certificate = authority.issue_cert(name)
    certificate.private_key_pem.write_to_path(data / "pg" / "server.key")
    (data / "pg" / "server.crt").write_bytes(b"".join(each.bytes() for each in certificate.cert_chain_pems))
    # Everybody who comes over the network needs TLS and a password, as with rds.force_ssl.
    (data / "pg" / "pg_hba.conf").write_text("local all rdsadmin trust\nhostssl all all all scram-sha-256\n")
    (data / "pg" / "server.key").chmod(0o600)
    _own(data)


def _start(data: Path, port: int) -> subprocess.Popen[bytes]:
    settings = {
        "ssl": "on",
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": str(data),
        "fsync": "off",
        "max_connections": "200",
    }
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    with (data.parent / "database.log").open("wb") as log:
        return subprocess.Popen(
            [str(programs() / "postgres"), "-D", str(data / "pg"), "-p", str(port), *options],
            stdout=log,
            stderr=log,
            preexec_fn=child_setup(signal.SIGQUIT, postgres_user()),  # noqa: PLW1509  # no thread of ours holds a lock here
        )


def _wait(data: Path, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    ready = str(programs() / "pg_isready")
    while subprocess.run([ready, "-q", "-h", str(data), "-p", str(port)], check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(
                f"Postgres did not start: {(data.parent / 'database.log').read_text()[-2000:]}"
            )
        time.sleep(0.2)


def _make_owner(data: Path, port: int, user: str, password: str) -> None:
    for statement in (
        f"CREATE ROLE \"{user}\" LOGIN CREATEROLE CREATEDB PASSWORD '{password.replace(chr(39), chr(39) * 2)}'",
        f'CREATE DATABASE airflow OWNER "{user}"',
    ):
        command(
            str(programs() / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1",
            "-h", str(data), "-p", str(port), "-U", "rdsadmin", "-d", "postgres", "-c", statement,
        )  # fmt: skip


def _as_postgres(*words: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in words],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=child_setup(signal.SIGKILL, postgres_user()),  # as above
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])


def _own(folder: Path) -> None:
    user = postgres_user() or pwd.getpwuid(os.getuid())
    uid, gid = (user.uid, user.gid) if hasattr(user, "uid") else (user.pw_uid, user.pw_gid)
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, uid, gid)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
