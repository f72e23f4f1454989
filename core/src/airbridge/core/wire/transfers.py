"""What a worker asks of its region by way of the gateway: messages of its queue, DAG code, its tasks' logs.

A worker whose transport is ``gateway`` sends these in place of requests to AWS. Bodies are JSON, but for the content of a log and of
an archive.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from airbridge.core.wire.message import Digest, Message

# Messages in one answer, and the longest wait for the first: limits of SQS.
MAX_MESSAGES: Final = 10
MAX_WAIT_SECONDS: Final = 20.0
# Bytes of one request with a log's content. S3 wants parts of at least 5 MiB, except the last.
PART_BYTES: Final = 5 * 1024 * 1024
# So that one log has at most 2.5 GiB.
MAX_PARTS: Final = 512
MAX_KEYS: Final = 1000

# A region's key is at most 1,024 bytes in S3.
Key = Annotated[str, Field(min_length=1, max_length=1024)]
Receipt = Annotated[str, Field(min_length=1, max_length=4096)]
Upload = Annotated[str, Field(min_length=1, max_length=2048)]
Etag = Annotated[str, Field(min_length=1, max_length=256)]


class ReceiveRequest(Message):
    """Wait for messages of the worker's own queue."""

    limit: int = Field(default=MAX_MESSAGES, ge=1, le=MAX_MESSAGES)
    wait_seconds: float = Field(default=0.0, ge=0, le=MAX_WAIT_SECONDS)


class QueueMessage(Message):
    """A message received. Its receipt is good for the worker that received it, and no other."""

    body: str
    receipt: Receipt
    receives: int


class ReceiveResponse(Message):
    """Messages received; none if the wait was in vain."""

    messages: tuple[QueueMessage, ...] = ()


class DeleteRequest(Message):
    """Delete messages that this worker received."""

    receipts: tuple[Receipt, ...] = Field(fail_fast=True, min_length=1, max_length=MAX_KEYS)


class ReturnRequest(Message):
    """Make messages that this worker received visible again, after a delay."""

    receipts: tuple[Receipt, ...] = Field(fail_fast=True, min_length=1, max_length=MAX_KEYS)
    after_seconds: float = Field(default=0.0, ge=0, le=43_200)


class CodeRequest(Message):
    """The archive of a snapshot or an environment, from a byte on: the answer is its content."""

    bundle: str = Field(min_length=1, max_length=250)
    version: Digest
    offset: int = Field(default=0, ge=0)


class LogKey(Message):
    """A log object that a request is about."""

    key: Key


class LogKeys(Message):
    """Log objects: those to delete, or those found."""

    keys: tuple[Key, ...] = Field(fail_fast=True, max_length=MAX_KEYS)


class LogFinish(Message):
    """The end of an upload in parts."""

    key: Key
    upload: Upload
    etags: tuple[Etag, ...] = Field(fail_fast=True, min_length=1, max_length=MAX_PARTS)


class LogUpload(Message):
    """An upload in parts that has begun."""

    upload: Upload


class Stored(Message):
    """What was stored; the etag is empty where nothing was."""

    etag: str = ""
