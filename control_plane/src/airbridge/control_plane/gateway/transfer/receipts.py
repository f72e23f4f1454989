"""Sealed receipts: a queue's receipt handle, bound to the worker that received the message.

A worker gets no bare handle, and can delete or return no message but those that were given to itself. Every gateway that has the same
keys opens the receipts of the others; after a rotation of the token key those given before it are refused, and their messages
come again when their visibility runs out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import RefusalReason

PURPOSE: Final = b"airbridge-receipt-v1"


class Receipts:
    """Seals and opens texts for one worker. `key` returns the current key."""

    def __init__(self, key: Callable[[], bytes]) -> None:
        self._key = key

    def seal(self, name: WorkerName, kind: str, text: str) -> str:
        """Return `text` sealed for a worker and a purpose."""
        return f"{self._seal(name, kind, text)}.{text}"

    def open(self, name: WorkerName, kind: str, sealed: str) -> str:
        """Return the text. Raises `Refused` (403) unless it was sealed for this worker and purpose."""
        seal, _, text = sealed.partition(".")
        if not hmac.compare_digest(seal.encode(), self._seal(name, kind, text).encode()):
            raise Refused(
                403,
                RefusalReason.FORBIDDEN,
                f"this {kind} was not given to this worker, or before the last rotation of keys",
                rule=f"holder of a {kind}",
            )
        return text

    def _seal(self, name: WorkerName, kind: str, text: str) -> str:
        content = b"\x00".join(part.encode() for part in (kind, name.uri, text))
        digest = hmac.new(self._key(), content, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest[:24]).decode()
