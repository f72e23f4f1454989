"""A pool's work queue: the interface, SQS, and an in-memory one that behaves alike (tests/contract/test_queue.py).

A queue announces work and owns nothing: a message may come twice, late or out of order.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from airbridge.core.aws.clock_skew import correct_clock_skew
from airbridge.core.aws.light_client import user_agent
from airbridge.core.exceptions import QueueError

# Messages in one call; a limit of SQS.
MAX_BATCH = 10
MAX_WAIT_SECONDS = 20.0
CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = MAX_WAIT_SECONDS + 10.0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message to send. `id` is unique among the messages of one call."""

    id: str
    body: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message received, hidden from others until it is deleted, released or its visibility runs out."""

    body: str
    receipt: str
    #: How often it has been received, this time included.
    receives: int


@dataclass(frozen=True, slots=True)
class Depth:
    """Approximate number of messages."""

    visible: int
    in_flight: int


class WorkQueue(Protocol):
    """Interface of a queue. Every method raises `QueueError` if the queue is out of reach or refuses."""

    def send(self, messages: Sequence[Outgoing]) -> dict[str, str]:
        """Send at most `MAX_BATCH` messages; return the ids of those refused, with the reason."""

    def receive(
        self, *, limit: int = MAX_BATCH, wait_seconds: float = 0.0, visibility_seconds: float = 60.0
    ) -> list[Received]:
        """Return up to `limit` messages, waiting up to `wait_seconds` for the first."""

    def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages. A receipt that is no longer good is ignored."""

    def release(self, receipts: Sequence[str], *, after_seconds: float = 0.0) -> None:
        """Make messages visible again after a delay. A receipt that is no longer good is ignored."""

    def depth(self) -> Depth:
        """Return how many messages there are."""


# --- SQS ------------------------------------------------------------------------------------------


def sqs_client(region: str, endpoint_url: str | None = None, *, session: Any = None) -> Any:
    """Return an SQS client without retries, for callers that have a backoff of their own. Slow to make: keep it."""
    import boto3
    from botocore.config import Config

    # One attempt: a poll that boto3 repeats by itself could outlive the caller that has given it up.
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        retries={"total_max_attempts": 1},
        tcp_keepalive=True,
        user_agent=user_agent(),
    )
    maker = session or boto3.session.Session()
    return correct_clock_skew(
        maker.client("sqs", region_name=region, endpoint_url=endpoint_url, config=config)
    )


class SqsQueue:
    """A queue on SQS, or on an emulator of it."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self.url = url

    def send(self, messages: Sequence[Outgoing]) -> dict[str, str]:
        """Send at most `MAX_BATCH` messages; return the ids of those refused, with the reason."""
        _check_batch(messages)
        if not messages:
            return {}
        names = {str(number): message.id for number, message in enumerate(messages)}
        entries = [
            {"Id": name, "MessageBody": message.body} for name, message in zip(names, messages, strict=True)
        ]
        answer = self._call("send_message_batch", Entries=entries)
        return {
            names[each["Id"]]: f"{each.get('Code')}: {each.get('Message', '')}"
            for each in answer.get("Failed", ())
        }

    def receive(
        self, *, limit: int = MAX_BATCH, wait_seconds: float = 0.0, visibility_seconds: float = 60.0
    ) -> list[Received]:
        """Return up to `limit` messages, waiting up to `wait_seconds` (whole seconds on SQS) for the first."""
        answer = self._call(
            "receive_message",
            MaxNumberOfMessages=min(limit, MAX_BATCH),
            WaitTimeSeconds=round(min(wait_seconds, MAX_WAIT_SECONDS)),
            VisibilityTimeout=round(visibility_seconds),
            MessageSystemAttributeNames=["ApproximateReceiveCount"],
        )
        return [_received(message) for message in answer.get("Messages", ())]

    def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages. A receipt that is no longer good is ignored."""
        for batch in _batches(receipts):
            entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(batch)]
            self._call("delete_message_batch", Entries=entries)

    def release(self, receipts: Sequence[str], *, after_seconds: float = 0.0) -> None:
        """Make messages visible again after a delay. A receipt that is no longer good is ignored."""
        # SQS takes whole seconds only.
        delay = round(after_seconds)
        for batch in _batches(receipts):
            entries = [
                {"Id": str(n), "ReceiptHandle": receipt, "VisibilityTimeout": delay}
                for n, receipt in enumerate(batch)
            ]
            self._call("change_message_visibility_batch", Entries=entries)

    def depth(self) -> Depth:
        """Return how many messages there are."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._call("get_queue_attributes", AttributeNames=names)["Attributes"]
        return Depth(visible=int(found[names[0]]), in_flight=int(found[names[1]]))

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: dict[str, Any] = getattr(self._client, operation)(QueueUrl=self.url, **arguments)
        except (BotoCoreError, ClientError) as error:
            raise QueueError(f"{operation} on {self.url}: {error}") from error
        return answer


def _received(message: dict[str, Any]) -> Received:
    return Received(
        body=message["Body"],
        receipt=message["ReceiptHandle"],
        receives=int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
    )


def _check_batch(messages: Sequence[Outgoing]) -> None:
    if len(messages) > MAX_BATCH:
        raise ValueError(f"{len(messages)} messages in one call; at most {MAX_BATCH}")
    if len({message.id for message in messages}) != len(messages):
        raise ValueError("two messages of one call have the same id")


def _batches(receipts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(receipts), MAX_BATCH):
        yield receipts[start : start + MAX_BATCH]


# --- In memory ------------------------------------------------------------------------------------


@dataclass
class _Held:
    body: str
    visible_at: float
    receives: int = 0
    receipt: str | None = None


class MemoryQueue:
    """A queue in this process. Threads may share it; `clock` is in seconds and monotonic.

    A message received more than `max_receives` times goes to `dead_letter`, as by SQS's redrive policy.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        max_receives: int | None = None,
        dead_letter: MemoryQueue | None = None,
    ) -> None:
        self._clock = clock
        self._max_receives = max_receives
        self._dead_letter = dead_letter
        self._messages: list[_Held] = []
        self._receipts = count(1)
        self._arrived = threading.Condition()

    def send(self, messages: Sequence[Outgoing]) -> dict[str, str]:
        """Send at most `MAX_BATCH` messages; none is ever refused."""
        _check_batch(messages)
        with self._arrived:
            now = self._clock()
            self._messages.extend(_Held(message.body, now) for message in messages)
            self._arrived.notify_all()
        return {}

    def receive(
        self, *, limit: int = MAX_BATCH, wait_seconds: float = 0.0, visibility_seconds: float = 60.0
    ) -> list[Received]:
        """Return up to `limit` messages, waiting up to `wait_seconds` for the first."""
        deadline = self._clock() + min(wait_seconds, MAX_WAIT_SECONDS)
        with self._arrived:
            while True:
                found = [
                    self._take(held, visibility_seconds) for held in self._visible()[: min(limit, MAX_BATCH)]
                ]
                left = deadline - self._clock()
                if found or left <= 0:
                    return found
                self._arrived.wait(self._until_next(left))

    def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages. A receipt that is no longer good is ignored."""
        with self._arrived:
            self._messages = [held for held in self._messages if held.receipt not in receipts]

    def release(self, receipts: Sequence[str], *, after_seconds: float = 0.0) -> None:
        """Make messages visible again after a delay. A receipt that is no longer good is ignored."""
        with self._arrived:
            for held in self._messages:
                if held.receipt in receipts:
                    held.visible_at = self._clock() + after_seconds
            self._arrived.notify_all()

    def depth(self) -> Depth:
        """Return how many messages there are."""
        with self._arrived:
            visible = len(self._visible())
            return Depth(visible=visible, in_flight=len(self._messages) - visible)

    def _visible(self) -> list[_Held]:
        now = self._clock()
        due = [held for held in self._messages if held.visible_at <= now]
        for held in [each for each in due if self._is_poison(each)]:
            due.remove(held)
            self._messages.remove(held)
            if self._dead_letter is not None:
                self._dead_letter.send([Outgoing("poison", held.body)])
        return due

    def _is_poison(self, held: _Held) -> bool:
        return self._max_receives is not None and held.receives >= self._max_receives

    def _take(self, held: _Held, visibility_seconds: float) -> Received:
        held.receives += 1
        held.receipt = f"receipt-{next(self._receipts)}"
        held.visible_at = self._clock() + visibility_seconds
        return Received(held.body, held.receipt, held.receives)

    def _until_next(self, left: float) -> float:
        """Return how long to wait: a hidden message may become visible before a new one arrives."""
        now = self._clock()
        return max(0.0, min([left, *(held.visible_at - now for held in self._messages)]))
