"""The regional work queue, from the worker's side. `SqsQueue` is the real one, `MemoryQueue` its twin.

Both pass `tests/contract/test_work_queue.py`. Every failure is a `QueueError`, and may be retried.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from airbridge.edge_worker.clock import Clock
from airbridge.executor.exceptions import QueueError

T = TypeVar("T")

MAX_BATCH = 10
"""The most messages one call receives, deletes or changes."""


@dataclass(frozen=True)
class Received:
    """A message, ours until its visibility time-out runs out. `receipt` names this delivery of it."""

    receipt: str
    body: str
    receives: int = 1


class WorkQueue(Protocol):
    """One queue."""

    async def receive(self, most: int, wait_seconds: int) -> list[Received]:
        """Return up to `most` (at most 10) messages, waiting up to `wait_seconds` for the first."""

    async def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages. One that is gone already is no error."""

    async def change_visibility(self, receipts: Sequence[str], seconds: int) -> None:
        """Hide messages for another `seconds`; 0 gives them back at once."""

    async def close(self) -> None:
        """Let go of what is open."""


class SqsQueue:
    """Amazon SQS, or an emulator of it, over boto3 in threads that do not hold up the end of the process."""

    def __init__(self, queue_url: str, region: str, *, endpoint_url: str | None = None) -> None:
        self._queue_url = queue_url
        self._region = region
        self._endpoint_url = endpoint_url
        self._made: Any = None
        self._lock = threading.Lock()

    async def receive(self, most: int, wait_seconds: int) -> list[Received]:
        """See `WorkQueue.receive`."""
        answer = await self._call(
            "receive_message",
            MaxNumberOfMessages=min(most, MAX_BATCH),
            WaitTimeSeconds=wait_seconds,
            AttributeNames=["ApproximateReceiveCount"],
        )
        return [_received(message) for message in answer.get("Messages", ())]

    async def delete(self, receipts: Sequence[str]) -> None:
        """See `WorkQueue.delete`."""
        for batch in _batches(receipts):
            entries = [{"Id": str(i), "ReceiptHandle": receipt} for i, receipt in enumerate(batch)]
            await self._call("delete_message_batch", Entries=entries)

    async def change_visibility(self, receipts: Sequence[str], seconds: int) -> None:
        """See `WorkQueue.change_visibility`."""
        for batch in _batches(receipts):
            entries = [
                {"Id": str(i), "ReceiptHandle": receipt, "VisibilityTimeout": seconds}
                for i, receipt in enumerate(batch)
            ]
            await self._call("change_message_visibility_batch", Entries=entries)

    async def close(self) -> None:
        """See `WorkQueue.close`."""
        if self._made is not None:
            self._made.close()

    async def _call(self, operation: str, **arguments: Any) -> Any:
        def call() -> Any:
            return getattr(self._client(), operation)(QueueUrl=self._queue_url, **arguments)

        try:
            return await in_daemon_thread(call)
        except Exception as error:
            from botocore.exceptions import BotoCoreError, ClientError

            if isinstance(error, BotoCoreError | ClientError | OSError):
                raise QueueError(f"{operation} on {self._queue_url}: {error}") from error
            raise

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = _sqs_client(self._region, self._endpoint_url)
            return self._made


def _sqs_client(region: str, endpoint_url: str | None) -> Any:
    import boto3  # slow to import
    from botocore.config import Config

    config = Config(
        connect_timeout=3,
        read_timeout=30,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=4,
    )
    return boto3.session.Session(region_name=region).client("sqs", endpoint_url=endpoint_url, config=config)


def _received(message: Any) -> Received:
    receives = int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1))
    return Received(message["ReceiptHandle"], message["Body"], receives)


def _batches(receipts: Sequence[str]) -> list[Sequence[str]]:
    return [receipts[i : i + MAX_BATCH] for i in range(0, len(receipts), MAX_BATCH)]


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Run a blocking call in a thread of its own that the interpreter does not wait for when it ends.

    For calls that may block for long: a long poll, an upload into a region that does not answer.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:  # noqa: BLE001 - handed to who waits
            outcome.set_exception(error)

    threading.Thread(target=run, name="blocking-call", daemon=True).start()
    return await asyncio.wrap_future(outcome)


@dataclass
class _Message:
    body: str
    visible_at: float
    receives: int = 0
    receipt: str = ""


@dataclass
class MemoryQueue:
    """A queue in memory, with visibility time-outs; for tests. `unreachable` plays a region that is away."""

    clock: Clock
    visibility_seconds: float = 30.0
    unreachable: bool = False
    messages: list[_Message] = field(default_factory=list)
    _added: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, body: str) -> None:
        """Put a message on the queue."""
        self.messages.append(_Message(body, visible_at=0.0))
        self._added.set()

    async def receive(self, most: int, wait_seconds: int) -> list[Received]:
        """See `WorkQueue.receive`."""
        self._check()
        until = self.clock.elapsed() + wait_seconds
        while not (found := self._take(min(most, MAX_BATCH))):
            left = until - self.clock.elapsed()
            if left <= 0:
                return []
            self._added.clear()
            try:
                await asyncio.wait_for(self._added.wait(), min(left, 0.05))
            except TimeoutError:
                continue
        return found

    async def delete(self, receipts: Sequence[str]) -> None:
        """See `WorkQueue.delete`."""
        self._check()
        self.messages = [one for one in self.messages if one.receipt not in receipts or not one.receipt]

    async def change_visibility(self, receipts: Sequence[str], seconds: int) -> None:
        """See `WorkQueue.change_visibility`."""
        self._check()
        for message in self.messages:
            if message.receipt and message.receipt in receipts:
                message.visible_at = self.clock.elapsed() + seconds
        self._added.set()

    async def close(self) -> None:
        """See `WorkQueue.close`."""

    def _take(self, most: int) -> list[Received]:
        now = self.clock.elapsed()
        found = [one for one in self.messages if one.visible_at <= now][:most]
        for message in found:
            message.receives += 1
            message.receipt = uuid.uuid4().hex
            message.visible_at = now + self.visibility_seconds
        return [Received(one.receipt, one.body, one.receives) for one in found]

    def _check(self) -> None:
        if self.unreachable:
            raise QueueError("the queue in memory cannot be reached")
