"""Frames: what is sent is received; what is torn, oversized or foreign is refused."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airbridge.edge_worker.exceptions import FrameError
from airbridge.edge_worker.proxy import protocol
from airbridge.edge_worker.proxy.protocol import Call, Cancel, Reply
from airbridge.edge_worker.triggers import messages as trigger_messages

texts = st.text(max_size=200)


@given(st.builds(Call, st.integers(1, 2**40), texts, texts, texts, st.none() | texts))
def test_calls_survive(call: Call) -> None:
    """A call is received as it was sent."""
    assert protocol.decode_call(protocol.encode(call)[4:]) == call


@given(
    st.builds(
        Reply, st.integers(1, 2**40), st.integers(100, 599), st.dictionaries(texts, texts), st.none() | texts
    )
    | st.builds(Cancel, texts.filter(bool), texts)
)
def test_agent_frames_round_trip(frame: Reply | Cancel) -> None:
    """Replies and cancellations are distinguished, and received as they were sent."""
    assert protocol.decode_from_agent(protocol.encode(frame)[4:]) == frame


@given(st.binary(max_size=300))
def test_garbage_is_refused(payload: bytes) -> None:
    """Any bytes either are a call or raise FrameError; nothing else happens."""
    with suppress(FrameError):
        protocol.decode_call(payload)


@pytest.mark.parametrize(
    "payload",
    [b"\x81\xa4path\xa2\xff\xfe", b"\x81\xa4more" + b"\x91" * 100_000 + b"\xc0"],
    ids=["no UTF-8", "deeply nested"],
)
def test_undecodable_frames_are_refused(payload: bytes) -> None:
    """What msgspec refuses with an error that is not its own is refused as well, of supervisors, agent and trigger hosts."""
    reader_data = len(payload).to_bytes(4, "big") + payload

    async def of_host() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(reader_data)
        await trigger_messages.receive(reader)

    for decode in (
        protocol.decode_call,
        protocol.decode_from_agent,
        trigger_messages.decode_to_host,
        lambda _: asyncio.run(of_host()),
    ):
        with pytest.raises(FrameError):
            decode(payload)


def test_sockets_carry_frames() -> None:
    """Both ends: the agent's stream, the supervisor's blocking socket; end of file is None."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        protocol.send(theirs, Call(1, "GET", "x"))
        assert await protocol.read_call(reader) == Call(1, "GET", "x")
        writer.write(protocol.encode(Reply(1, 200, {}, "y" * 100_000)))
        reply = await asyncio.to_thread(protocol.receive, theirs)
        assert isinstance(reply, Reply)
        assert reply.body == "y" * 100_000
        theirs.shutdown(socket.SHUT_WR)
        assert await protocol.read_call(reader) is None
        writer.close()
        await writer.wait_closed()
        assert protocol.receive(theirs) is None
        theirs.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data", [b"\x00\x00\x00\x09abc", b"\x00\x00", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff"]
)
def test_torn_and_oversized_frames_are_refused(data: bytes) -> None:
    """A stream that ends inside a frame, or announces an absurd one, is an error on both ends."""

    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        await protocol.read_call(reader)

    with pytest.raises(FrameError):
        asyncio.run(read())
    one, other = socket.socketpair()
    with one, other:
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        with pytest.raises(FrameError):
            protocol.receive(other)
