"""Join method ``bound_key``: the host's own key, and the count of its joins, both in the state directory.

A join is noted before it is sent, under a random name, and repeated under that name until it is answered: an answer that is lost
counts no join twice. A copy of the directory counts on from the same number, and the control plane stops both.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog

from airbridge.core.protocol import JoinByBoundKey
from airbridge.core.signing import public_verify_key
from airbridge.core.wire import rejoin
from airbridge.edge_worker.exceptions import IdentityError
from airbridge.edge_worker.gateway_client.rejoin_key import RejoinKey, sync
from airbridge.edge_worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

FILE_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class JoinCount:
    """Joins of this host that were answered, and the name of the one under way."""

    counter: int = 0
    attempt: str | None = None


class BoundKeyJoin:
    """Joins by the key in `WorkerSettings.rejoin_key_file`, which also proves that a name was this host's."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._key = RejoinKey(settings.rejoin_key_file)

    async def proof(self, csr_pem: str) -> JoinByBoundKey:
        """See `Join.proof`."""
        return await asyncio.to_thread(self._prove, csr_pem)

    async def accepted(self) -> None:
        """See `Join.accepted`."""
        await asyncio.to_thread(self._count)

    def _prove(self, csr_pem: str) -> JoinByBoundKey:
        s = self._settings
        count = read_count(s.join_count_file)
        attempt = count.attempt or secrets.token_hex(16)
        if count.attempt is None:
            _write(s.join_count_file, JoinCount(count.counter, attempt))
        try:
            key = self._key.open()
        except OSError as error:
            raise IdentityError(f"the key {s.rejoin_key_file} cannot be kept: {error}") from error
        # An operator who is to bind it may have no other way to it than this log: a pod's that is not admitted yet.
        public = public_verify_key(key.public_key()).public_key
        log.info("identity.joining_by_key", worker=s.name, key=public, join=count.counter + 1)
        subject = rejoin.Subject(s.region, s.pool, s.name, csr_pem)
        return rejoin.prove_join(key, subject, count.counter + 1, attempt, self._token())

    def _count(self) -> None:
        count = read_count(self._settings.join_count_file)
        _write(self._settings.join_count_file, JoinCount(count.counter + 1, None))

    def _token(self) -> str | None:
        """Return the token that binds the key at first use; it may be deleted afterwards."""
        path = self._settings.join_token_file
        try:
            return (path.read_text().strip() or None) if path is not None else None
        except (OSError, UnicodeDecodeError):
            return None


def public_key_of(settings: WorkerSettings, *, make: bool) -> str | None:
    """Return the host's public key; None if there is none and it is not to be made. Raises `IdentityError`."""
    path = settings.rejoin_key_file
    if not make and not path.exists():
        return None
    try:
        return public_verify_key(RejoinKey(path).open().public_key()).public_key
    except OSError as error:
        raise IdentityError(f"the key {path} cannot be read: {error}") from error


def read_count(path: Path) -> JoinCount:
    """Return the count of this host's joins; 0 if there was none. Raises `IdentityError` if it cannot be read."""
    try:
        found = json.loads(path.read_text())
        return JoinCount(int(found["counter"]), found["attempt"])
    except FileNotFoundError:
        return JoinCount()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise IdentityError(
            f"the count of joins {path} cannot be read ({error}); an operator must bind this host's key again, after the file is "
            "removed"
        ) from error


def _write(path: Path, count: JoinCount) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            json.dump(asdict(count), file)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        sync(path.parent)
    except OSError as error:
        raise IdentityError(f"the count of joins {path} cannot be kept: {error}") from error
