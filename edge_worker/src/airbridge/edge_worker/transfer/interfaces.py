"""What a worker needs of its region, whichever transport it has: a queue to receive from, and buckets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from airbridge.core.aws.object_store import ObjectInfo
from airbridge.core.aws.queue import Received


class SourceQueue(Protocol):
    """The part of `airbridge.core.aws.queue.WorkQueue` that workers use."""

    def receive(
        self, *, limit: int = 10, wait_seconds: float = 0.0, visibility_seconds: float = 60.0
    ) -> list[Received]:
        """Return up to `limit` messages, waiting up to `wait_seconds` for the first."""

    def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages. A receipt that is no longer good is ignored."""

    def release(self, receipts: Sequence[str], *, after_seconds: float = 0.0) -> None:
        """Make messages visible again after a delay. A receipt that is no longer good is ignored."""


class RegionStore(Protocol):
    """The part of `airbridge.core.aws.object_store.ObjectStore` that workers use."""

    def stream(self, key: str) -> Iterator[bytes]:
        """Yield an archive's content. Raises `ObjectNotFound` at the first piece."""

    def put(self, key: str, data: bytes) -> str:
        """Write a log object."""

    def put_file(self, key: str, path: Path) -> None:
        """Write a file's content, however large."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects under the prefix of one log."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete log objects; those that do not exist are no error."""

    def read_url(self, key: str, seconds: int) -> str:
        """Return a URL to read an object. Raises `StoreError` where no URL leads to the bucket."""

    def write_url(self, key: str, seconds: int, headers: Mapping[str, str]) -> str:
        """Return a URL to write an object. Raises `StoreError` where no URL leads to the bucket."""
