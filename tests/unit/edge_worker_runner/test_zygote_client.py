"""The agent's end of the zygote's socket."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airbridge.edge_worker.runner import messages
from airbridge.edge_worker.runner.messages import Reaped
from airbridge.edge_worker.runner.zygote_client import ZygoteClient


def no_template(pid: int, zygote: int, sock: socket.socket) -> None:
    raise AssertionError("there is no template")


@pytest.mark.parametrize("packet", [b"x", b"y" * 100_000], ids=["text", "too long"])
def test_invalid_message_is_not_the_end(packet: bytes) -> None:
    """A message that cannot be read is passed over: the zygote, on which every task depends, is there still."""

    async def scenario() -> None:
        ours, theirs = messages.socket_pair()
        child: Any = SimpleNamespace(pid=7)
        began_as: Any = ({}, Path("/nowhere"))
        reaped: list[Reaped] = []
        lost: list[None] = []
        client = ZygoteClient(
            child, ours, began_as, reaped.append, lambda: lost.append(None), on_template=no_template
        )
        with theirs:
            theirs.send(packet)
            messages.send(theirs, Reaped(8, 0))
            await asyncio.sleep(0.1)
            assert (client.alive, reaped, lost) == (True, [Reaped(8, 0)], [])
        await asyncio.sleep(0.1)
        assert (client.alive, lost) == (False, [None])
        client._ready.exception()

    asyncio.run(scenario())
