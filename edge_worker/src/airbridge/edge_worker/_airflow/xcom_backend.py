"""The XCom backend of tasks: large values are in the region's bucket, and Airflow's database has a reference."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from uuid import uuid4

import httpx
import structlog
from airflow.configuration import conf
from airflow.sdk.bases.xcom import BaseXCom
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import GetXComSequenceSlice, XComSequenceSliceResult
from airflow.serialization.serde import deserialize, serialize

from airbridge.core.exceptions import AirBridgeError
from airbridge.core.residency import xcoms
from airbridge.core.residency.xcoms import Form, StoredXCom, XComFile
from airbridge.edge_worker._airflow.region_messages import LoadXCom, StoreXCom, Transfer

log = structlog.get_logger(logger_name="task")
_T = TypeVar("_T")

CHUNK: Final = 1024 * 1024
TRIES: Final = 5
_TIMEOUT: Final = httpx.Timeout(60.0, connect=10.0)
# Seconds before the second try; they double.
_PAUSE: Final = 0.5
# What S3 answers to an expired URL, and to one that expired credentials have signed.
_EXPIRED: Final = frozenset({403, 400})


class XComTransferError(AirBridgeError):
    """A stored XCom cannot be written or read, or does not match its reference."""


class RegionalXCom(BaseXCom):  # type: ignore[misc] # Airflow publishes no types
    """See the module. Values of up to `inline_bytes` travel as Airflow's own do."""

    @staticmethod
    def serialize_value(value: Any, *, key: str | None = None, **_of_task: Any) -> Any:
        """Return the value as the Task SDK encodes it, or a reference once it is stored. Raises `XComTransferError`."""
        if isinstance(value, XComFile):
            return _store_file(value.path).encode()
        encoded = serialize(value)
        inline = _option(xcoms.INLINE)
        if inline is None or key == xcoms.SKIP_KEY:
            return encoded
        with tempfile.TemporaryFile() as spool:
            head, size, digest = _spool(encoded, spool, inline)
            if size <= inline:
                return encoded
            spool.seek(0)
            preview = head[: _option(xcoms.PREVIEW) or 0].decode("ascii")
            return _store(spool, size, digest, Form.JSON, preview).encode()

    @classmethod
    def _set_xcom_in_db(cls, key: str, value: Any, **of_task: Any) -> None:
        """Push what Airflow pushes past the backend, an operator's extra links; leave out one that is too large for that.

        A stored link would be of no use: the API server, which shows it, reads Airflow's database alone.
        """
        inline = _option(xcoms.INLINE)
        if inline is not None and (size := len(xcoms.text_of(value))) > inline:
            log.info("Extra link left out: XComs of its size stay in the region", key=key, bytes=size)
            return
        super()._set_xcom_in_db(key, value, **of_task)

    @staticmethod
    def deserialize_value(result: Any) -> Any:
        """Return the value, read from the bucket if `result` has a reference. Raises `XComTransferError`."""
        if not xcoms.is_reference(result.value):
            return deserialize(result.value)
        return _load(StoredXCom.decode(result.value))

    @classmethod
    def get_all(cls, *, key: str, dag_id: str, task_id: str, run_id: str) -> Any:
        """Return the values of all map indexes, as `BaseXCom.get_all` does."""
        of_task = {"key": key, "dag_id": dag_id, "task_id": task_id, "run_id": run_id}
        answer = task_runner.SUPERVISOR_COMMS.send(
            GetXComSequenceSlice(**of_task, start=None, stop=None, step=None)
        )
        if not isinstance(answer, XComSequenceSliceResult):
            raise TypeError(f"Expected XComSequenceSliceResult, received: {type(answer)} {answer}")
        values = [
            _load(StoredXCom.decode(each)) if xcoms.is_reference(each) else deserialize(each)
            for each in answer.root
        ]
        return values or None


def _option(name: str) -> int | None:
    given = conf.get(xcoms.SECTION, name, fallback=None)
    return None if given is None else int(given)


def _spool(encoded: Any, spool: IO[bytes], inline: int) -> tuple[bytes, int, str]:
    """Write the value's JSON to a file, a piece at a time; return its beginning, size and digest."""
    head, size, digest = bytearray(), 0, hashlib.sha256()
    for piece in xcoms.pieces(encoded):
        size += len(piece)
        digest.update(piece)
        if len(head) <= inline:
            head += piece[: max(inline, 4096) + 1]
        spool.write(piece)
        if size > xcoms.MAX_BYTES:
            raise XComTransferError(f"an XCom of more than {xcoms.MAX_BYTES} bytes; store it yourself")
    return bytes(head), size, digest.hexdigest()


def _store_file(path: Path) -> StoredXCom:
    with path.open("rb") as file:
        digest, size = hashlib.sha256(), 0
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
        return _store(file, size, digest.hexdigest(), Form.FILE)


def _store(file: IO[bytes], size: int, digest: str, form: Form, preview: str = "") -> StoredXCom:
    def put(client: httpx.Client) -> StoredXCom:
        transfer = _ask(StoreXCom(size=size, digest=digest))
        file.seek(0)
        client.put(transfer.url, content=_chunks(file), headers=transfer.headers).raise_for_status()
        name = xcoms.ObjectName.parse(transfer.object)
        return StoredXCom(transfer.region, name, size, form, preview)

    stored = _try(put, "written")
    log.info("XCom stored in the region", region=stored.region, object=stored.object.key, bytes=size)
    return stored


def _load(stored: StoredXCom) -> Any:
    # Beneath TMPDIR, which is the task's own and is deleted with it.
    path = Path(tempfile.gettempdir(), f"xcom-{uuid4().hex}")

    def get(client: httpx.Client) -> None:
        transfer = _ask(LoadXCom(region=stored.region, object=stored.object.key))
        with client.stream("GET", transfer.url, headers=transfer.headers) as answer:
            answer.raise_for_status()
            _receive(answer.iter_bytes(CHUNK), path, stored)

    try:
        _try(get, "read")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if stored.form is Form.FILE:
        return XComFile(path)
    with path.open("rb") as file:
        path.unlink()
        return deserialize(json.load(file))


def _receive(chunks: Iterator[bytes], path: Path, stored: StoredXCom) -> None:
    """Write what comes to a file; of the reference's size and digest. Raises `XComTransferError`."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > stored.size:
                break
            digest.update(chunk)
            file.write(chunk)
    if size != stored.size or digest.hexdigest() != stored.object.sha256:
        raise XComTransferError(
            f"the XCom in {stored.object.key} of region {stored.region} is not what its reference says: "
            f"{stored.size} bytes with SHA-256 {stored.object.sha256}"
        )


def _ask(message: StoreXCom | LoadXCom) -> Transfer:
    answer = task_runner.SUPERVISOR_COMMS.send(message)
    if not isinstance(answer, Transfer):
        raise TypeError(f"Expected Transfer, received: {type(answer)}")
    return answer


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _try(transfer: Callable[[httpx.Client], _T], verb: str) -> _T:
    """Transfer, again after an error that may pass. The URL, a short-lived credential, is in no message."""
    expired = False
    for attempt in range(TRIES):
        try:
            with httpx.Client(timeout=_TIMEOUT) as client:
                return transfer(client)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            # The next try has a fresh URL: a task that stood still had one that has expired.
            why, passes = (
                f"the bucket answered {status}",
                status >= 500 or (status in _EXPIRED and not expired),
            )
            expired = expired or status in _EXPIRED
        except httpx.TransportError as error:
            why, passes = type(error).__name__, True
        if not passes or attempt == TRIES - 1:
            break
        time.sleep(_PAUSE * 2**attempt)
    raise XComTransferError(f"the XCom cannot be {verb} in its region's bucket: {why}")
