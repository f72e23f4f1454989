"""Contract of every work queue: SQS (on moto) and the one in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

import pytest
from tests.support.moto import CREDENTIALS, Moto

from airbridge.core.aws.queue import Depth, MemoryQueue, Outgoing, SqsQueue, WorkQueue, sqs_client
from airbridge.core.exceptions import QueueError


@dataclass
class Pair:
    """A queue whose messages go to `dead_letter` after two receives."""

    queue: WorkQueue
    dead_letter: WorkQueue


def on_sqs(moto: Moto) -> Pair:
    import boto3

    client = sqs_client("eu-west-1", moto.url, session=boto3.session.Session(**CREDENTIALS))
    name = uuid4().hex
    dead = client.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
    arn = client.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": "2"}}'
    url = client.create_queue(QueueName=name, Attributes={"RedrivePolicy": redrive})["QueueUrl"]
    return Pair(SqsQueue(client, url), SqsQueue(client, dead))


def in_memory() -> Pair:
    dead = MemoryQueue()
    return Pair(MemoryQueue(max_receives=2, dead_letter=dead), dead)


@pytest.fixture(params=["sqs", "memory"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return in_memory() if request.param == "memory" else on_sqs(request.getfixturevalue("moto"))


@pytest.fixture
def queue(pair: Pair) -> WorkQueue:
    return pair.queue


def send(queue: WorkQueue, *bodies: str) -> None:
    assert queue.send([Outgoing(f"id-{n}", body) for n, body in enumerate(bodies)]) == {}


def test_a_message_sent_is_received(queue: WorkQueue) -> None:
    """A message is received unchanged, with a receipt and a receive count of one."""
    send(queue, '{"é": "✓"}')
    [message] = queue.receive()
    assert message.body == '{"é": "✓"}'
    assert message.receives == 1


def test_sending_nothing_is_no_error(queue: WorkQueue) -> None:
    """An empty batch is sent without a call."""
    assert queue.send([]) == {}


def test_a_batch_is_at_most_ten(queue: WorkQueue) -> None:
    """More than ten messages in one call is a mistake of the caller."""
    with pytest.raises(ValueError, match="11 messages in one call; at most 10"):
        queue.send([Outgoing(str(n), "x") for n in range(11)])


def test_ids_of_a_batch_differ(queue: WorkQueue) -> None:
    """Two messages of one call with the same id is a mistake of the caller."""
    with pytest.raises(ValueError, match="same id"):
        queue.send([Outgoing("a", "x"), Outgoing("a", "y")])


def test_receive_keeps_to_its_limit(queue: WorkQueue) -> None:
    """No more messages are returned than the limit, and the others stay."""
    send(queue, *"abcde")
    assert len(queue.receive(limit=2)) == 2
    assert queue.depth() == Depth(visible=3, in_flight=2)


def test_a_received_message_is_hidden(queue: WorkQueue) -> None:
    """A message in flight is not given to a second receiver."""
    send(queue, "a")
    queue.receive()
    assert queue.receive() == []


def test_visibility_runs_out(queue: WorkQueue) -> None:
    """A message neither deleted nor released comes back when its visibility runs out, counted."""
    send(queue, "a")
    queue.receive(visibility_seconds=1)
    [again] = queue.receive(wait_seconds=3)
    assert again.receives == 2


def test_a_deleted_message_is_gone(queue: WorkQueue) -> None:
    """A deleted message never comes back."""
    send(queue, *"ab")
    queue.delete([message.receipt for message in queue.receive()])
    assert queue.depth() == Depth(visible=0, in_flight=0)


def test_released_message_is_visible(queue: WorkQueue) -> None:
    """A released message is there for the next receiver."""
    send(queue, "a")
    queue.release([message.receipt for message in queue.receive()])
    assert [message.body for message in queue.receive()] == ["a"]


def test_release_can_delay_message(queue: WorkQueue) -> None:
    """A message released with a delay stays hidden for that long."""
    send(queue, "a")
    queue.release([message.receipt for message in queue.receive()], after_seconds=1)
    assert queue.receive() == []
    assert [message.body for message in queue.receive(wait_seconds=3)] == ["a"]


def test_old_receipts_are_ignored(queue: WorkQueue) -> None:
    """Deleting or releasing a message that is gone is no error."""
    send(queue, "a")
    receipts = [message.receipt for message in queue.receive()]
    queue.delete(receipts)
    queue.delete(receipts)
    queue.release(receipts)
    assert queue.receive() == []


def test_poison_message_is_dead_lettered(pair: Pair) -> None:
    """A message received more often than the redrive policy allows is moved away."""
    send(pair.queue, "poison")
    for _ in range(2):
        pair.queue.release([message.receipt for message in pair.queue.receive()])
    assert pair.queue.receive() == []
    assert [message.body for message in pair.dead_letter.receive(wait_seconds=1)] == ["poison"]


def test_an_empty_queue_is_waited_on(queue: WorkQueue) -> None:
    """A long poll of an empty queue returns nothing after about the requested time."""
    began = time.monotonic()
    assert queue.receive(wait_seconds=1) == []
    assert time.monotonic() - began >= 0.9


def test_a_waiting_receiver_wakes_at_once(queue: WorkQueue) -> None:
    """A long poll returns as soon as a message is there."""
    later = threading.Timer(0.3, send, (queue, "late"))
    later.start()
    began = time.monotonic()
    assert [message.body for message in queue.receive(wait_seconds=10)] == ["late"]
    assert time.monotonic() - began < 5
    later.join()


@pytest.fixture
def unreachable() -> Callable[..., WorkQueue]:
    import boto3

    def make(url: str = "http://127.0.0.1:9/") -> WorkQueue:
        client = sqs_client("eu-west-1", url, session=boto3.session.Session(**CREDENTIALS))
        return SqsQueue(client, f"{url}/000000000000/nowhere")

    return make


def test_unreachable_queue_is_queue_error(unreachable: Callable[..., WorkQueue]) -> None:
    """A refused connection is a `QueueError` that names the call and the queue."""
    with pytest.raises(QueueError, match=r"send_message_batch on http://127\.0\.0\.1:9/"):
        unreachable().send([Outgoing("a", "x")])


def test_missing_queue_is_queue_error(moto: Moto, unreachable: Callable[..., WorkQueue]) -> None:
    """A queue that does not exist is a `QueueError`."""
    with pytest.raises(QueueError, match="NonExistentQueue"):
        unreachable(moto.url).receive()
