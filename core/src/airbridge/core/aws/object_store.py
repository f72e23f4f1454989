"""The object store: one bucket, seen as named, immutable-by-convention objects.

`S3Store` uses S3 or an emulator of it; `MemoryStore` is a full twin for tests. Both pass
`tests/contract/test_store.py`. Free of Airflow, so that the edge worker may use it.

Errors are `StoreError`, whose `transient` answers "may this be retried?"; a missing object is
`ObjectNotFound`, a lost race of a conditional write `PreconditionFailed`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from airbridge.core.aws.clock_skew import correct_clock_skew
from airbridge.core.aws.light_client import remember_endpoints, user_agent
from airbridge.core.exceptions import ObjectNotFound, PreconditionFailed, StoreError

CHUNK_BYTES = 1024 * 1024
# The most keys S3 takes in one DeleteObjects call.
DELETE_BATCH = 1000
# Content from this size on is sent once S3 has agreed to it ("100 Continue"), which costs a round trip.
EXPECT_BYTES = 1024 * 1024


@dataclass(frozen=True)
class ObjectInfo:
    """An object's name and size; `etag` names its content and serves conditional writes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True)
class StoredObject:
    """An object's whole content, with the `etag` it was read under."""

    data: bytes
    etag: str


class ObjectStore(Protocol):
    """One bucket. Every method raises `StoreError` when the store cannot be reached or refuses."""

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        ...

    def get(self, key: str) -> StoredObject:
        """Return the whole object. Raises `ObjectNotFound`."""
        ...

    def stream(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """The object's content from a byte on, in pieces of at most `CHUNK_BYTES`; raises `ObjectNotFound` at the first."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """Return the object's name, size and etag; None if it does not exist."""
        ...

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """Write the object and return its new etag.

        With `if_match` only if its etag is still that one, with `if_absent` only if there is none;
        raises `PreconditionFailed` otherwise.
        """
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write a file's content, however large."""
        ...

    def begin_parts(self, key: str) -> str:
        """Begin to write an object in parts; return the upload's id."""
        ...

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        """Write a part, from number 1 on; return its etag. All but the last have at least 5 MiB."""
        ...

    def finish_parts(self, key: str, upload: str, etags: Sequence[str]) -> str:
        """Make the object of its parts, in order; return its etag."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose key begins with `prefix`, in the order of their keys."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; those that do not exist are no error."""
        ...

    def read_url(self, key: str, seconds: int) -> str:
        """Return a URL by which anyone may read the object, for so long. Nothing is sent."""
        ...

    def write_url(self, key: str, seconds: int, headers: Mapping[str, str]) -> str:
        """Return a URL by which anyone may write the object, for so long, in a request with these headers alone.

        They are ``content-length`` and ``x-amz-checksum-sha256``, by which S3 refuses other content. Nothing is sent.
        """
        ...


def connect(
    region: str,
    bucket: str,
    *,
    endpoint_url: str | None = None,
    connect_seconds: float = 3.0,
    read_seconds: float = 20.0,
    attempts: int = 3,
    session: Any = None,
) -> S3Store:
    """The bucket `bucket` of `region`. Nothing is sent yet; credentials come from `session`, or boto3's default chain."""
    import boto3  # slow to import, and not every process that imports this module opens a store
    from botocore.config import Config

    config = Config(
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        # For URLs; objects that KMS encrypts can be read by no other.
        signature_version="s3v4",
        # Emulators have no DNS names for buckets. Otherwise boto3 signs URLs to the global endpoint, which redirects.
        s3={"addressing_style": "path" if endpoint_url else "virtual"},
        user_agent=user_agent(),
    )
    maker = session or boto3.session.Session()
    client = maker.client("s3", region_name=region, endpoint_url=endpoint_url, config=config)
    return S3Store(correct_clock_skew(remember_endpoints(client)), bucket)


class S3Store:
    """A bucket on S3, or on an emulator of it, over a boto3 client."""

    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._bucket

    def get(self, key: str) -> StoredObject:
        """See `ObjectStore.get`."""
        with self._errors("read", key):
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
            return StoredObject(answer["Body"].read(), answer["ETag"])

    def stream(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """See `ObjectStore.stream`."""
        part = {"Range": f"bytes={offset}-"} if offset else {}
        with self._errors("read", key):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=key, **part)["Body"]
            except self._client.exceptions.ClientError as error:
                # S3 calls a range that begins at an object's end, or beyond it, invalid.
                if _code(error) == "InvalidRange":
                    return
                raise
            try:
                yield from body.iter_chunks(CHUNK_BYTES)
            finally:
                body.close()

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        # By listing: for a missing object S3 answers 403 to a role without s3:ListBucket, see `_missing`.
        with self._errors("look up", key):
            answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
        # If the key does not exist, the first one with its prefix is a longer one.
        for found in answer.get("Contents", ()):
            if found["Key"] == key:
                return ObjectInfo(key, found["Size"], found["ETag"])
        return None

    def _missing(self, key: str) -> bool:
        """Return whether a refused read was for an object that is not there.

        S3 answers 403, not 404, for a missing object to a role that may not list the bucket, or may only list under a prefix.
        """
        try:
            return self.head(key) is None
        except StoreError:
            return False

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `ObjectStore.put`."""
        condition: dict[str, str] = {}
        if if_match is not None:
            condition["IfMatch"] = if_match
        if if_absent:
            condition["IfNoneMatch"] = "*"
        with self._errors("write", key):
            # botocore makes a file of bytes, and asks S3 before it sends a file; a bytearray it just sends.
            body = bytearray(data) if len(data) < EXPECT_BYTES else data
            answer = self._client.put_object(Bucket=self._bucket, Key=key, Body=body, **condition)
        etag: str = answer["ETag"]
        return etag

    def put_file(self, key: str, path: Path) -> None:
        """See `ObjectStore.put_file`."""
        with self._errors("write", key):
            self._client.upload_file(str(path), self._bucket, key)

    def begin_parts(self, key: str) -> str:
        """See `ObjectStore.begin_parts`."""
        with self._errors("write", key):
            answer = self._client.create_multipart_upload(Bucket=self._bucket, Key=key)
        return str(answer["UploadId"])

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        """See `ObjectStore.put_part`."""
        with self._errors("write", key):
            answer = self._client.upload_part(
                Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=data
            )
        return str(answer["ETag"])

    def finish_parts(self, key: str, upload: str, etags: Sequence[str]) -> str:
        """See `ObjectStore.finish_parts`."""
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
        with self._errors("write", key):
            answer = self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        return str(answer["ETag"])

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with self._errors("list", prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            for page in pages:
                for found in page.get("Contents", ()):
                    yield ObjectInfo(found["Key"], found["Size"], found["ETag"])

    def delete(self, keys: Iterable[str]) -> None:
        """See `ObjectStore.delete`."""
        pending = list(keys)
        for start in range(0, len(pending), DELETE_BATCH):
            batch = pending[start : start + DELETE_BATCH]
            with self._errors("delete", batch[0]):
                answer = self._client.delete_objects(
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                )
            for refused in answer.get("Errors", ()):
                raise StoreError(
                    f"s3://{self._bucket}/{refused['Key']} cannot be deleted: {refused['Message']}",
                    transient=refused["Code"] in _TRANSIENT_CODES,
                )

    def read_url(self, key: str, seconds: int) -> str:
        """See `ObjectStore.read_url`."""
        return self._url("get_object", key, seconds, {})

    def write_url(self, key: str, seconds: int, headers: Mapping[str, str]) -> str:
        """See `ObjectStore.write_url`."""
        signed = {
            "ContentLength": int(headers["content-length"]),
            "ChecksumSHA256": headers["x-amz-checksum-sha256"],
        }
        return self._url("put_object", key, seconds, signed)

    def _url(self, method: str, key: str, seconds: int, signed: Mapping[str, Any]) -> str:
        with self._errors("sign a URL to", key):
            url: str = self._client.generate_presigned_url(
                method, Params={"Bucket": self._bucket, "Key": key, **signed}, ExpiresIn=seconds
            )
            return url

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        from boto3.exceptions import S3UploadFailedError
        from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
        from botocore.exceptions import ConnectionError as BotoConnectionError

        name = f"s3://{self._bucket}/{key}"
        try:
            yield
        except ClientError as error:
            if verb == "read" and _code(error) in _DENIED_CODES and self._missing(key):
                raise ObjectNotFound(f"{name} does not exist") from error
            raise _client_error(error, f"cannot {verb} {name}", name) from error
        except (HTTPClientError, BotoConnectionError, S3UploadFailedError) as error:
            raise StoreError(f"cannot {verb} {name}: {error}", transient=True) from error
        except (BotoCoreError, OSError) as error:
            raise StoreError(f"cannot {verb} {name}: {error}", transient=False) from error


_MISSING_CODES = frozenset({"NoSuchKey", "NoSuchUpload", "404", "NotFound"})
_DENIED_CODES = frozenset({"AccessDenied", "403", "Forbidden"})
_LOST_RACE_CODES = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412"})
_TRANSIENT_CODES = frozenset(
    {
        "InternalError",
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ExpiredToken",
    }
)


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _client_error(error: Any, what: str, name: str) -> StoreError:
    code = _code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _MISSING_CODES:
        return ObjectNotFound(f"{name} does not exist")
    if code in _LOST_RACE_CODES:
        return PreconditionFailed(f"{name} was changed by another writer")
    return StoreError(f"{what}: {error}", transient=code in _TRANSIENT_CODES or status >= 500)


@dataclass
class MemoryStore:
    """A bucket in memory: a full implementation, for tests and for trying things out. Safe between threads.

    `unreachable` plays a region that cannot be reached: every call then fails as a transient error.
    """

    bucket: str = "memory"
    unreachable: bool = False
    _objects: dict[str, bytes] = field(default_factory=dict, repr=False)
    _parts: dict[tuple[str, str], dict[int, bytes]] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def get(self, key: str) -> StoredObject:
        """See `ObjectStore.get`."""
        with self._open():
            if key not in self._objects:
                raise ObjectNotFound(f"memory://{self.bucket}/{key} does not exist")
            data = self._objects[key]
        return StoredObject(data, _etag(data))

    def stream(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """See `ObjectStore.stream`."""
        data = self.get(key).data
        for start in range(offset, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectStore.head`."""
        with self._open():
            data = self._objects.get(key)
        return None if data is None else ObjectInfo(key, len(data), _etag(data))

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        """See `ObjectStore.put`."""
        with self._open():
            present = self._objects.get(key)
            raced = if_absent and present is not None
            if if_match is not None:
                if present is None:
                    raise ObjectNotFound(f"memory://{self.bucket}/{key} does not exist")
                raced = raced or _etag(present) != if_match
            if raced:
                raise PreconditionFailed(f"memory://{self.bucket}/{key} was changed by another writer")
            self._objects[key] = bytes(data)
        return _etag(data)

    def put_file(self, key: str, path: Path) -> None:
        """See `ObjectStore.put_file`."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(
                f"cannot write memory://{self.bucket}/{key}: {error}", transient=False
            ) from error
        self.put(key, data)

    def begin_parts(self, key: str) -> str:
        """See `ObjectStore.begin_parts`."""
        with self._open():
            upload = f"upload-{len(self._parts) + 1}"
            self._parts[key, upload] = {}
        return upload

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> str:
        """See `ObjectStore.put_part`."""
        with self._open():
            self._upload(key, upload)[number] = bytes(data)
        return _etag(data)

    def finish_parts(self, key: str, upload: str, etags: Sequence[str]) -> str:
        """See `ObjectStore.finish_parts`."""
        with self._open():
            parts = self._upload(key, upload)
            found = [parts.get(number) for number in range(1, len(etags) + 1)]
            data = [
                part
                for part, etag in zip(found, etags, strict=True)
                if part is not None and _etag(part) == etag
            ]
            if len(data) != len(etags):
                raise StoreError(f"memory://{self.bucket}/{key}: a part is not there", transient=False)
            del self._parts[key, upload]
            return self.put(key, b"".join(data))

    def _upload(self, key: str, upload: str) -> dict[int, bytes]:
        try:
            return self._parts[key, upload]
        except KeyError as error:
            raise ObjectNotFound(f"memory://{self.bucket}/{key}: there is no upload {upload!r}") from error

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        with self._open():
            found = [(key, data) for key, data in sorted(self._objects.items()) if key.startswith(prefix)]
        yield from (ObjectInfo(key, len(data), _etag(data)) for key, data in found)

    def delete(self, keys: Iterable[str]) -> None:
        """See `ObjectStore.delete`."""
        with self._open():
            for key in keys:
                self._objects.pop(key, None)

    def read_url(self, key: str, seconds: int) -> str:
        """See `ObjectStore.read_url`. No client can follow it."""
        return f"memory://{self.bucket}/{key}?method=GET&seconds={seconds}"

    def write_url(self, key: str, seconds: int, headers: Mapping[str, str]) -> str:
        """See `ObjectStore.write_url`. No client can follow it."""
        return (
            f"memory://{self.bucket}/{key}?method=PUT&seconds={seconds}&headers={','.join(sorted(headers))}"
        )

    @contextmanager
    def _open(self) -> Iterator[None]:
        if self.unreachable:
            raise StoreError(f"memory://{self.bucket} cannot be reached", transient=True)
        with self._lock:
            yield


def _etag(data: bytes) -> str:
    # As S3 makes it for an object of a single part, quotes included.
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
