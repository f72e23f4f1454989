"""DAG code and logs by way of the gateway, as the object stores that `Bundles` and `LogShipper` know.

Archives resume where a broken connection left them, and large logs go out in parts that are sent again one by one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Final, TypeVar

from airbridge.core.aws.object_store import ObjectInfo
from airbridge.core.backoff import Backoff
from airbridge.core.exceptions import ObjectNotFound, StoreError
from airbridge.core.wire.transfers import (
    MAX_KEYS,
    PART_BYTES,
    CodeRequest,
    LogFinish,
    LogKey,
    LogKeys,
    LogUpload,
    Stored,
)
from airbridge.edge_worker.exceptions import GatewayError, GatewayRefused
from airbridge.edge_worker.gateway_client.retry import RetryDecision, judge
from airbridge.edge_worker.transfer.client import Transfers

T = TypeVar("T")

# Attempts without a byte gained after which an archive or a part is given up; its caller begins anew later.
ATTEMPTS: Final = 6


class GatewayStore:
    """The region's buckets: DAG code is read, and logs of this worker's tasks are written, listed and deleted.

    The gateway decides which buckets these are; `bucket` is a name for messages alone.
    """

    def __init__(
        self, transfers: Transfers, bucket: str, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._transfers = transfers
        self._bucket = bucket
        self._pause = pause

    def stream(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """See `ObjectStore.stream`. Resumes after a cut; the caller checks the digest of the whole."""
        bundle, version = _named(key)
        backoff, failures = Backoff(0.5, 10.0, random.random), 0
        while True:
            try:
                for piece in self._transfers.stream(
                    "code", CodeRequest(bundle=bundle, version=version, offset=offset)
                ):
                    offset, failures = offset + len(piece), 0
                    backoff.succeeded()
                    yield piece
            except GatewayError as error:
                failures += 1
                if failures >= ATTEMPTS or judge(error) is not RetryDecision.RETRY:
                    raise _store_error(f"cannot read {key}", error) from error
                self._pause(backoff.failed())
            else:
                return

    def put(self, key: str, data: bytes) -> str:
        """See `ObjectStore.put`."""
        if len(data) <= PART_BYTES:
            return self._again(key, lambda: self._transfers.put("logs/put", data, Stored, key=key).etag)
        return self._put_parts(key, (data[at : at + PART_BYTES] for at in range(0, len(data), PART_BYTES)))

    def put_file(self, key: str, path: Path) -> None:
        """See `ObjectStore.put_file`."""
        with path.open("rb") as file:
            first = file.read(PART_BYTES)
            if len(first) < PART_BYTES:
                self.put(key, first)
            else:
                self._put_parts(key, _parts(first, lambda: file.read(PART_BYTES)))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the objects of one log. Sizes and etags are unknown."""
        with _errors("list", prefix):
            found = self._transfers.ask("logs/list", LogKey(key=f"{prefix.rstrip('/')}/full.log"), LogKeys)
        yield from (ObjectInfo(key, 0, "") for key in found.keys)

    def delete(self, keys: Iterable[str]) -> None:
        """See `ObjectStore.delete`."""
        pending = tuple(keys)
        for start in range(0, len(pending), MAX_KEYS):
            batch = pending[start : start + MAX_KEYS]
            with _errors("delete", batch[0]):
                self._transfers.ask("logs/delete", LogKeys(keys=batch), Stored)

    def read_url(self, key: str, seconds: int) -> str:  # noqa: ARG002  # the interface's signature
        """Raise `StoreError`: a worker of this transport reaches no bucket."""
        raise self._unreachable(key)

    def write_url(self, key: str, seconds: int, headers: Mapping[str, str]) -> str:  # noqa: ARG002  # the interface's signature
        """Raise `StoreError`: a worker of this transport reaches no bucket."""
        raise self._unreachable(key)

    def _unreachable(self, key: str) -> StoreError:
        return StoreError(f"{key}: tasks of a pool whose transport is gateway reach no bucket")

    def _put_parts(self, key: str, parts: Iterable[bytes]) -> str:
        upload = self._again(
            key, lambda: self._transfers.ask("logs/begin", LogKey(key=key), LogUpload).upload
        )
        etags = [self._put_part(key, upload, number, part) for number, part in enumerate(parts, 1)]
        finish = LogFinish(key=key, upload=upload, etags=tuple(etags))
        # Not again: a finish whose answer was lost has no upload left, and the whole log is sent once more.
        with _errors("write", key):
            return self._transfers.ask("logs/finish", finish, Stored).etag

    def _put_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        return self._again(
            key,
            lambda: (
                self._transfers.put("logs/part", data, Stored, key=key, upload=upload, number=number).etag
            ),
        )

    def _again(self, key: str, work: Callable[[], T]) -> T:
        backoff = Backoff(0.5, 10.0, random.random)
        for _ in range(ATTEMPTS - 1):
            try:
                return work()
            except GatewayError as error:
                if judge(error) is not RetryDecision.RETRY:
                    raise _store_error(f"cannot write {key}", error) from error
                self._pause(backoff.failed())
        with _errors("write", key):
            return work()


def _parts(first: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    part = first
    while part:
        yield part
        part = read()


def _named(key: str) -> tuple[str, str]:
    """Return bundle and version of an archive's key, ``bundles/<bundle>/<hex>.tar.gz``."""
    bundle, _, file = key.removeprefix("bundles/").rpartition("/")
    return bundle, f"sha256:{file.removesuffix('.tar.gz')}"


@contextmanager
def _errors(verb: str, key: str) -> Iterator[None]:
    try:
        yield
    except GatewayError as error:
        raise _store_error(f"cannot {verb} {key}", error) from error


def _store_error(what: str, error: GatewayError) -> StoreError:
    if isinstance(error, GatewayRefused) and error.status == HTTPStatus.NOT_FOUND:
        return ObjectNotFound(f"{what}: {error}")
    return StoreError(f"{what} through the gateway: {error}", transient=judge(error) is RetryDecision.RETRY)
