"""The pool's queue by way of the gateway: a `WorkQueue` of which a worker can receive, and to which it can give back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from airbridge.core.aws.queue import Received
from airbridge.core.exceptions import QueueError
from airbridge.core.wire.transfers import (
    MAX_KEYS,
    MAX_MESSAGES,
    MAX_WAIT_SECONDS,
    DeleteRequest,
    ReceiveRequest,
    ReceiveResponse,
    ReturnRequest,
    Stored,
)
from airbridge.edge_worker.exceptions import GatewayError
from airbridge.edge_worker.transfer.client import Transfers

if TYPE_CHECKING:
    from pydantic import BaseModel


class GatewayQueue:
    """The queue of the worker's own pool. The gateway decides which that is."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers

    def receive(
        self,
        *,
        limit: int = MAX_MESSAGES,
        wait_seconds: float = 0.0,
        visibility_seconds: float = 60.0,  # noqa: ARG002 - the gateway's own is the same for all workers
    ) -> list[Received]:
        """See `WorkQueue.receive`."""
        wait = min(wait_seconds, MAX_WAIT_SECONDS)
        request = ReceiveRequest(limit=min(limit, MAX_MESSAGES), wait_seconds=wait)
        try:
            answer = self._transfers.ask("queue/receive", request, ReceiveResponse, wait_seconds=wait)
        except GatewayError as error:
            raise QueueError(f"receive through the gateway: {error}") from error
        return [Received(each.body, each.receipt, each.receives) for each in answer.messages]

    def delete(self, receipts: Sequence[str]) -> None:
        """See `WorkQueue.delete`."""
        for batch in _batches(receipts):
            self._tell("queue/delete", DeleteRequest(receipts=batch))

    def release(self, receipts: Sequence[str], *, after_seconds: float = 0.0) -> None:
        """See `WorkQueue.release`."""
        for batch in _batches(receipts):
            self._tell("queue/return", ReturnRequest(receipts=batch, after_seconds=after_seconds))

    def _tell(self, what: str, request: BaseModel) -> None:
        try:
            self._transfers.ask(what, request, Stored)
        except GatewayError as error:
            raise QueueError(f"{what} through the gateway: {error}") from error


def _batches(receipts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for start in range(0, len(receipts), MAX_KEYS):
        yield tuple(receipts[start : start + MAX_KEYS])
