"""Contract of every object store: S3 (on moto) and the one in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError
from tests.support.moto import Moto, free_port

from airbridge.core.aws.object_store import CHUNK_BYTES, MemoryStore, ObjectStore, S3Store, connect
from airbridge.core.exceptions import ObjectNotFound, PreconditionFailed, StoreError


@pytest.fixture(params=["s3", "memory"])
def store(request: pytest.FixtureRequest) -> Iterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStore()
        return
    moto: Moto = request.getfixturevalue("moto")
    bucket = moto.bucket(f"store-{uuid4().hex}", "eu-west-1")
    # As `connect` signs.
    yield S3Store(moto.client("s3", "eu-west-1", signature_version="s3v4"), bucket)


def test_what_is_put_is_got(store: ObjectStore) -> None:
    """An object reads back as it was written, under the etag the write returned."""
    etag = store.put("a/b.txt", b"content")
    got = store.get("a/b.txt")
    assert got.data == b"content"
    assert got.etag == etag


def test_put_replaces(store: ObjectStore) -> None:
    """A second write replaces the first and changes the etag."""
    first = store.put("key", b"1")
    second = store.put("key", b"2")
    assert store.get("key").data == b"2"
    assert first != second


def test_missing_object(store: ObjectStore) -> None:
    """Reading what is not there raises ObjectNotFound, which names it; looking it up answers None."""
    with pytest.raises(ObjectNotFound, match="no/such"):
        store.get("no/such")
    with pytest.raises(ObjectNotFound, match="no/such"):
        next(iter(store.stream("no/such")))
    assert store.head("no/such") is None


def test_head_returns_size_and_etag(store: ObjectStore) -> None:
    """`head` returns an object's size and etag without its content."""
    etag = store.put("key", b"12345")
    info = store.head("key")
    assert info is not None
    assert (info.key, info.size, info.etag) == ("key", 5, etag)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_stream_gives_the_whole_content(store: ObjectStore, size: int) -> None:
    """Streaming yields bounded pieces that add up to the object."""
    data = bytes(range(256)) * (size // 256 + 1)
    store.put("big", data[:size])
    pieces = list(store.stream("big"))
    assert b"".join(pieces) == data[:size]
    assert all(len(piece) <= CHUNK_BYTES for piece in pieces)


def test_put_if_absent(store: ObjectStore) -> None:
    """Of two creations of the same object the second loses."""
    store.put("key", b"first", if_absent=True)
    with pytest.raises(PreconditionFailed):
        store.put("key", b"second", if_absent=True)
    assert store.get("key").data == b"first"


def test_put_if_match(store: ObjectStore) -> None:
    """A write under an etag succeeds once: the object has another etag afterwards."""
    etag = store.put("key", b"1")
    store.put("key", b"2", if_match=etag)
    with pytest.raises(PreconditionFailed):
        store.put("key", b"3", if_match=etag)
    assert store.get("key").data == b"2"


def test_put_if_match_needs_object(store: ObjectStore) -> None:
    """A write under an etag to an object that is gone fails and creates nothing."""
    with pytest.raises(StoreError):
        store.put("key", b"1", if_match='"0123456789abcdef0123456789abcdef"')
    assert store.head("key") is None


def test_put_file(store: ObjectStore, tmp_path: Path) -> None:
    """A file is written as its content; one larger than a part as well."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * (9 * CHUNK_BYTES))
    store.put_file("file", path)
    info = store.head("file")
    assert info is not None
    assert info.size == 9 * CHUNK_BYTES


def test_put_file_that_is_not_there(store: ObjectStore, tmp_path: Path) -> None:
    """A missing file is a StoreError that is not transient."""
    with pytest.raises(StoreError, match="missing") as caught:
        store.put_file("file", tmp_path / "missing")
    assert caught.value.transient is False


def test_list_is_ordered_by_prefix(store: ObjectStore) -> None:
    """Listing yields the keys under a prefix, in order, with sizes."""
    for key in ["logs/b", "logs/a/2", "logs/a/10", "other"]:
        store.put(key, b"12")
    assert [info.key for info in store.list("logs/")] == ["logs/a/10", "logs/a/2", "logs/b"]
    assert {info.size for info in store.list("")} == {2}
    assert list(store.list("none")) == []


def test_list_goes_on_past_a_page(store: ObjectStore) -> None:
    """More objects than a page of the store holds are all listed, and all deleted."""
    for number in range(1005):
        store.put(f"p/{number:05d}", b"")
    keys = [info.key for info in store.list("p/")]
    assert keys == [f"p/{number:05d}" for number in range(1005)]
    store.delete(keys)
    assert list(store.list("p/")) == []


def test_delete_of_missing_keys_succeeds(store: ObjectStore) -> None:
    """Deleting removes the objects named and is no error for those that never were."""
    store.put("a", b"")
    store.put("b", b"")
    store.delete(["a", "never"])
    store.delete([])
    assert [info.key for info in store.list("")] == ["b"]


def test_keys_with_odd_characters(store: ObjectStore) -> None:
    """Airflow's log paths (equals signs, plus signs, colons, spaces, accents) are fine as keys."""
    key = "logs/dag_id=é/run_id=manual__2025-01-01T00:00:00+00:00/task id/attempt=1.log/x"
    store.put(key, b"1")
    assert store.get(key).data == b"1"
    assert [info.key for info in store.list("logs/dag_id=é/")] == [key]


def test_unreachable_s3_is_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that cannot be reached is a transient StoreError that names the object."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    endpoint_url = f"http://127.0.0.1:{free_port()}"
    store = connect("eu-west-1", "bucket", endpoint_url=endpoint_url, connect_seconds=0.5, attempts=1)
    with pytest.raises(StoreError, match="s3://bucket/key") as caught:
        store.get("key")
    assert caught.value.transient is True


def test_unreachable_memory_is_transient() -> None:
    """The twin plays an unreachable region the same way."""
    store = MemoryStore(unreachable=True)
    with pytest.raises(StoreError) as caught:
        store.put("key", b"")
    assert caught.value.transient is True


def test_missing_bucket_is_not_transient(moto: Moto) -> None:
    """A bucket that does not exist is no passing fault."""
    store = S3Store(moto.client("s3"), "no-such-bucket")
    with pytest.raises(StoreError, match="no-such-bucket") as caught:
        store.put("key", b"")
    assert caught.value.transient is False
    assert not isinstance(caught.value, ObjectNotFound)


class Guarded:
    """A boto3 client of a role that may list under ``bundles/`` only: S3 then answers 403 for missing objects."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def get_object(self, **kwargs: Any) -> Any:
        try:
            return self._client.get_object(**kwargs)
        except ClientError as error:
            answer = {"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}
            raise ClientError(answer, "GetObject") from error

    def list_objects_v2(self, *, Prefix: str, **kwargs: Any) -> Any:  # noqa: N803 - boto3's name
        if not Prefix.startswith("bundles/"):
            answer = {"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}
            raise ClientError(answer, "ListObjectsV2")
        return self._client.list_objects_v2(Prefix=Prefix, **kwargs)


def test_missing_differs_from_forbidden(moto: Moto) -> None:
    """A 403 that S3 sends because the role may not list is reported as missing where a listing can confirm it."""
    bucket = moto.bucket(f"guarded-{uuid4().hex}")
    store = S3Store(Guarded(moto.client("s3")), bucket)
    with pytest.raises(ObjectNotFound):
        store.get("bundles/dags/CURRENT")
    with pytest.raises(StoreError, match="Access Denied") as caught:
        store.get("other")
    assert not isinstance(caught.value, ObjectNotFound)


def test_urls_name_one_object(store: ObjectStore) -> None:
    """A URL to read or to write is for one object and a time; making one sends nothing, and the object need not exist."""
    headers = {"content-length": "5", "x-amz-checksum-sha256": "x"}
    for url in (store.read_url("a/b.txt", 300), store.write_url("a/b.txt", 300, headers)):
        assert "/a/b.txt?" in url
        assert "300" in url
    assert "content-length" in store.write_url("a/b.txt", 300, headers)
    assert store.head("a/b.txt") is None
