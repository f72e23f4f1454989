"""The supervisor's end of the proxy connection."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest

from airbridge.edge_worker.proxy import protocol
from airbridge.edge_worker.proxy.protocol import Cancel, Reply
from airbridge.edge_worker.runner.proxy_connection import AGENT_GONE, ProxyConnection


@pytest.fixture
def pair() -> Iterator[tuple[ProxyConnection, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ProxyConnection(ours), theirs


def test_call_returns_reply_of_its_id(pair: tuple[ProxyConnection, socket.socket]) -> None:
    """Replies to other calls are skipped."""
    proxy, agent = pair
    agent.sendall(protocol.encode(Reply(99, 500)) + protocol.encode(Reply(1, 204, {"a": "b"}, "{}")))
    assert proxy.call("PATCH", "task-instances/x/state", "q=1", '{"state": "success"}') == Reply(
        1, 204, {"a": "b"}, "{}"
    )
    head = agent.recv(4)
    call = protocol.decode_call(agent.recv(protocol.checked_length(head)))
    assert (call.id, call.method, call.path, call.query) == (1, "PATCH", "task-instances/x/state", "q=1")


def test_a_reply_may_come_in_pieces(pair: tuple[ProxyConnection, socket.socket]) -> None:
    """Bytes are kept until the frame is whole."""
    proxy, agent = pair
    data = protocol.encode(Reply(1, 200, {}, "x" * 100))
    agent.sendall(data[:3])
    assert proxy.poll()
    agent.sendall(data[3:50])
    assert proxy.poll()
    agent.sendall(data[50:])
    assert proxy.call("GET", "variables/x", "", None).status == 200


def test_cancellation_behind_reply_is_kept(pair: tuple[ProxyConnection, socket.socket]) -> None:
    """The reply is returned, and the connection is cancelled."""
    proxy, agent = pair
    agent.sendall(protocol.encode(Reply(1, 201)) + protocol.encode(Cancel("cancelled", "by hand")))
    assert proxy.call("POST", "xcoms/d/r/t/k", "", "1").status == 201
    assert proxy.ended == Cancel("cancelled", "by hand")


def test_cancellation_ends_all_calls(
    pair: tuple[ProxyConnection, socket.socket],
) -> None:
    """The waiting call and all later ones are answered with 409, and nothing more is sent."""
    proxy, agent = pair
    agent.sendall(protocol.encode(Cancel("lost")))
    assert proxy.call("GET", "variables/x", "", None).status == 409
    agent.setblocking(False)
    agent.recv(1024)
    assert proxy.call("GET", "variables/y", "", None).status == 409
    with pytest.raises(BlockingIOError):
        agent.recv(1024)


def test_reads_of_stopped_task(pair: tuple[ProxyConnection, socket.socket]) -> None:
    """While a cancelled task is being stopped its reads are made, its writes are not, and neither is a read that lasts too long."""
    proxy, agent = pair
    agent.sendall(protocol.encode(Cancel("cancelled")))
    assert proxy.poll()
    proxy.serve_reads(30)
    assert proxy.call("POST", "xcoms/d/r/t/k", "", "1").status == 409
    agent.sendall(protocol.encode(Reply(2, 200, {}, "{}")))
    assert proxy.call("GET", "connections/c", "", None).status == 200
    head = agent.recv(4)
    assert protocol.decode_call(agent.recv(protocol.checked_length(head))).path == "connections/c"
    proxy.serve_reads(0.05)
    assert proxy.call("GET", "connections/never", "", None).status == 409


def test_read_is_given_up_for_next_request(pair: tuple[ProxyConnection, socket.socket]) -> None:
    """A read whose task has made its next request is waited for no more; a write is, and what is answered already is returned."""
    proxy, agent = pair
    requests, task = socket.socketpair()
    with requests, task:
        proxy.give_reads_up_for(requests)
        agent.sendall(protocol.encode(Reply(1, 200)))
        assert proxy.call("GET", "variables/x", "", None).status == 200
        task.sendall(b"next")
        reply = proxy.call("GET", "variables/x", "", None)
        assert (reply.status, json.loads(reply.body or "")["detail"]["reason"]) == (409, "given_up")
        agent.sendall(protocol.encode(Reply(3, 201)))
        assert proxy.call("PUT", "variables/x", "", "{}").status == 201
        assert proxy.ended is None


def test_reads_end_with_the_agent(pair: tuple[ProxyConnection, socket.socket]) -> None:
    """Nothing is read without the agent, and the socket is polled no more."""
    proxy, agent = pair
    agent.sendall(protocol.encode(Cancel("cancelled")))
    assert proxy.poll()
    proxy.serve_reads(30)
    agent.shutdown(socket.SHUT_WR)
    assert proxy.call("GET", "connections/c", "", None).status == 409
    assert not proxy.poll()
    assert proxy.ended == Cancel("cancelled")


@pytest.mark.parametrize("last_words", [b"", b"\x00\x00\x00\x02\xc1\xc1", b"\xff\xff\xff\xff"])
def test_eof_or_garbage_means_agent_gone(
    pair: tuple[ProxyConnection, socket.socket], last_words: bytes
) -> None:
    """The end of the socket, or an invalid frame, ends the connection with reason `agent_gone`."""
    proxy, agent = pair
    agent.sendall(last_words)
    agent.shutdown(socket.SHUT_WR)
    assert proxy.call("GET", "variables/x", "", None).status == 409
    assert proxy.ended is not None
    assert proxy.ended.cancel == AGENT_GONE


def test_cancellation_interrupts_pause(pair: tuple[ProxyConnection, socket.socket]) -> None:
    """A supervisor that pauses between two retries receives the cancellation at once."""
    proxy, agent = pair
    agent.sendall(protocol.encode(Cancel("cancelled")))
    proxy.pause(30)
    assert proxy.ended is not None
    proxy.pause(30)
