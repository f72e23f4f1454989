"""The key that signs work items, followed: a new file is in use from the next message on."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import structlog

from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import WorkItem
from airbridge.core.signing import Signer

log = structlog.get_logger()


class MessageSigner(Protocol):
    """Signs work items: a `Signer`, or one that follows its file."""

    def sign(self, item: WorkItem) -> str:
        """Return the envelope to put on the queue."""


class ReloadingSigner:
    """A `Signer` that reads its key again when the file changes. A file that cannot be read changes nothing."""

    def __init__(self, path: Path) -> None:
        """Read the key. Raises `ConfigurationError`."""
        self._path = path
        self._signer = read_signer(path)
        self._seen = self._stamp()

    def sign(self, item: WorkItem) -> str:
        """See `Signer.sign`."""
        stamp = self._stamp()
        if stamp is not None and stamp != self._seen:
            self._seen = stamp
            self._read_again()
        return self._signer.sign(item)

    def _read_again(self) -> None:
        try:
            self._signer = read_signer(self._path)
        except ConfigurationError as error:
            log.error("signing_key.refused", why=str(error))  # noqa: TRY400 - the key before it is good
        else:
            log.info("signing_key.changed", kid=self._signer.verify_key.kid)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


def read_signer(path: Path) -> Signer:
    """Read the key that signs work items. Raises `ConfigurationError`."""
    try:
        return Signer.from_pem(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"the work-item signing key {path} cannot be read: {error.strerror}; [airbridge] secrets_dir must name "
            "the directory that 'airbridge init' made, readable by the scheduler"
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"{path}: {error}; 'airbridge init' makes a right one") from error
