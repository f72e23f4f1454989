"""The supervisor's end of the relay."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from airbridge.edge_worker import frames
from airbridge.edge_worker.frames import Cancel, Reply
from airbridge.edge_worker.runner.link import AGENT_GONE, Link


@pytest.fixture
def pair() -> Iterator[tuple[Link, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Link(ours), theirs


def test_a_call_returns_the_reply_of_its_id(pair: tuple[Link, socket.socket]) -> None:
    """Replies to other calls are passed over."""
    link, agent = pair
    agent.sendall(frames.encode(Reply(99, 500)) + frames.encode(Reply(1, 204, {"a": "b"}, "{}")))
    assert link.call("PATCH", "task-instances/x/state", "q=1", '{"state": "success"}') == Reply(
        1, 204, {"a": "b"}, "{}"
    )
    head = agent.recv(4)
    call = frames.decode_call(agent.recv(frames.checked_length(head)))
    assert (call.id, call.method, call.path, call.query) == (1, "PATCH", "task-instances/x/state", "q=1")


def test_a_reply_may_come_in_pieces(pair: tuple[Link, socket.socket]) -> None:
    """Bytes are kept until the frame is whole."""
    link, agent = pair
    data = frames.encode(Reply(1, 200, {}, "x" * 100))
    agent.sendall(data[:3])
    assert link.poll()
    agent.sendall(data[3:50])
    assert link.poll()
    agent.sendall(data[50:])
    assert link.call("GET", "variables/x", "", None).status == 200


def test_a_cancellation_right_behind_a_reply_is_not_lost(pair: tuple[Link, socket.socket]) -> None:
    """The reply is returned, and the link has ended."""
    link, agent = pair
    agent.sendall(frames.encode(Reply(1, 201)) + frames.encode(Cancel("cancelled", "by hand")))
    assert link.call("POST", "xcoms/d/r/t/k", "", "1").status == 201
    assert link.ended == Cancel("cancelled", "by hand")


def test_a_cancellation_ends_the_call_that_waits_and_all_after_it(pair: tuple[Link, socket.socket]) -> None:
    """They are answered with 409, and nothing more is sent."""
    link, agent = pair
    agent.sendall(frames.encode(Cancel("lost")))
    assert link.call("GET", "variables/x", "", None).status == 409
    agent.setblocking(False)
    agent.recv(1024)
    assert link.call("GET", "variables/y", "", None).status == 409
    with pytest.raises(BlockingIOError):
        agent.recv(1024)


@pytest.mark.parametrize("last_words", [b"", b"\x00\x00\x00\x02\xc1\xc1", b"\xff\xff\xff\xff"])
def test_the_end_of_the_relay_or_garbage_on_it_means_the_agent_is_gone(
    pair: tuple[Link, socket.socket], last_words: bytes
) -> None:
    """Whatever is not a frame ends the link as well."""
    link, agent = pair
    agent.sendall(last_words)
    agent.shutdown(socket.SHUT_WR)
    assert link.call("GET", "variables/x", "", None).status == 409
    assert link.ended is not None
    assert link.ended.cancel == AGENT_GONE


def test_a_pause_ends_when_the_link_does(pair: tuple[Link, socket.socket]) -> None:
    """A supervisor between two retries hears the order to stop."""
    link, agent = pair
    agent.sendall(frames.encode(Cancel("cancelled")))
    link.pause(30)
    assert link.ended is not None
    link.pause(30)
