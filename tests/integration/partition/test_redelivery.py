"""SQS delivers at least once: twice, late, or again while the task runs. Only the ledger decides what is run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs
from tests.integration.partition.conftest import MakeWorld
from tests.integration.partition.test_policies import Work
from tests.integration.partition.world import REGION
from tests.support.moto import CREDENTIALS, Moto

from airbridge.core.aws.queue import Outgoing, Received, SqsQueue, sqs_client
from airbridge.core.exceptions import QueueError

pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")


@dataclass
class Sqs(SqsQueue):
    """A queue on moto whose messages come back after a second, and that may be deaf to deletions."""

    client: Any
    url: str
    deaf: bool = False
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.client, self.url)

    def send(self, messages: Sequence[Outgoing]) -> dict[str, str]:
        self.sent.extend(message.body for message in messages)
        return super().send(messages)

    def receive(self, **arguments: Any) -> list[Received]:
        # In place of the minute that a worker asks for.
        return super().receive(**{**arguments, "visibility_seconds": 1.0})

    def delete(self, receipts: Sequence[str]) -> None:
        if self.deaf:
            raise QueueError("delete_message_batch: no route to host")
        super().delete(receipts)

    @property
    def empty(self) -> bool:
        depth = self.depth()
        return depth.visible == depth.in_flight == 0


@pytest.fixture
def sqs(moto: Moto) -> Sqs:
    import boto3

    client = sqs_client(REGION, moto.url, session=boto3.session.Session(**CREDENTIALS))
    return Sqs(client, client.create_queue(QueueName=uuid4().hex)["QueueUrl"])


def test_redelivered_message_while_task_runs(make_world: MakeWorld, sqs: Sqs) -> None:
    """However often the message is redelivered, the one run goes on and is committed once."""
    world, work = make_world(sqs), Work()
    sqs.deaf = True

    async def scenario() -> None:
        world.submit(first={})
        async with world.workers("w1", script=work):
            await world.turn_until(lambda: work.running)
            with capture_logs() as logs:
                await world.turn_until(lambda: any(each["event"] == "poller.duplicate" for each in logs))
            async with world.workers("w2", script=work):
                await world.turn_until(lambda: world.events("claim.refused"))
                sqs.deaf = False
                await world.turn_until(lambda: sqs.empty)
                assert work.running == {("w1", "first")}
            work.release("w1")
            await world.turn_until(lambda: world.state("first") == "success")

    asyncio.run(scenario())
    assert world.runs == [("w1", "first", 1)]
    assert world.xcoms("first") == ["w1"]
    refusals = {(each["worker"], each["reason"]) for each in world.events("claim.refused")}
    assert refusals == {("w2", "already_claimed")}


def test_message_delivered_twice_runs_once(make_world: MakeWorld, sqs: Sqs) -> None:
    """Of two copies that two workers receive at the same time one is granted."""
    world, work = make_world(sqs), Work()

    async def scenario() -> None:
        world.submit(first={})
        await world.turn_until(lambda: sqs.sent)
        sqs.send([Outgoing("copy", sqs.sent[0])])
        async with world.workers("w1", "w2", script=work):
            await world.turn_until(lambda: work.running)
            await world.turn_until(lambda: sqs.empty)
            work.release("w1")
            work.release("w2")
            await world.turn_until(lambda: world.state("first") == "success")

    asyncio.run(scenario())
    assert len(world.runs) == 1
    assert [row.epoch for row in world.rows()] == [1]


def test_message_after_finished_task(make_world: MakeWorld, sqs: Sqs) -> None:
    """It is refused as settled, deleted from the queue, and recorded as an event."""
    world, work = make_world(sqs), Work()
    work.release("w1")

    async def scenario() -> None:
        world.submit(first={})
        async with world.workers("w1", script=work) as [agent]:
            await world.turn_until(lambda: world.state("first") == "success" and not agent.status()["tasks"])
            before = world.rows()[0]
            sqs.send([Outgoing("late", sqs.sent[0])])
            await world.turn_until(lambda: world.events("claim.refused"))
            await world.turn_until(lambda: sqs.empty)
            after = world.rows()[0]
            assert (after.state, after.epoch, after.settled_at) == ("settled", 1, before.settled_at)

    asyncio.run(scenario())
    assert [each["reason"] for each in world.events("claim.refused")] == ["settled"]
    assert world.runs == [("w1", "first", 1)]
    assert world.state("first") == "success"
