"""Messages between the runner's processes."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import pytest

from airbridge.edge_worker.runner import messages, process
from airbridge.edge_worker.runner.messages import (
    Ended,
    Go,
    Job,
    Parsed,
    Ready,
    Reaped,
    Source,
    Spawn,
    Started,
    Unshared,
)

SOURCE = Source("dags", "sha256:1", "/bundles/1", "a/dag.py")


def test_messages_and_descriptors_arrive_as_sent() -> None:
    """One message a packet; a descriptor is another one of the same file."""
    ours, theirs = messages.socket_pair()
    read, write = os.pipe()
    sent: list[messages.Message] = [
        Spawn(SOURCE, True),
        Ready(1),
        Parsed(2, ("x",)),
        Reaped(3, 9),
        Unshared(SOURCE, ("y",)),
        Started(4),
        Go(),
        Ended(1, "why"),
    ]
    with ours, theirs:
        for message in sent:
            messages.send(ours, message, (write,))
        received = [messages.receive(theirs, 1) for _ in sent]
        assert [message for message, _fds in received] == sent
        os.write(received[0][1][0], b"same")
        assert os.read(read, 10) == b"same"
        for _message, fds in received:
            assert [os.get_inheritable(fd) for fd in fds] == [False]
            os.close(fds[0])
    os.close(read)
    os.close(write)


def test_unexpected_descriptors_are_closed() -> None:
    """Descriptors beyond the expected number are not kept open: the sender may be a hostile template."""
    ours, theirs = messages.socket_pair()
    with ours, theirs:
        before = process.descriptors()
        messages.send(ours, Go(), (0, 1, 2))
        assert messages.receive(theirs) == (Go(), [])
        assert process.descriptors() == before


INVALID = {
    "text": b"x",
    "no msgpack": b"\xc1",
    "too long": b"y" * 100_000,
    "no UTF-8": msgspec.msgpack.encode({"type": "Parsed", "violations": ["??"]}).replace(b"??", b"\xff\xfe"),
    "a type of no UTF-8": msgspec.msgpack.encode({"type": "Parsed"}).replace(b"Parsed", b"\xffarsed"),
    # Of a field that no message has, so that it is passed over.
    "deeply nested": b"\x82\xa4type\xa6Parsed\xa4more" + b"\x91" * 60_000 + b"\xc0",
}


@pytest.mark.parametrize("packet", INVALID.values(), ids=INVALID)
def test_invalid_message_is_socket_error(packet: bytes) -> None:
    """An invalid message counts as the end of the socket, and its descriptors are closed."""
    ours, theirs = messages.socket_pair()
    with ours, theirs:
        before = process.descriptors()
        socket.send_fds(ours, [packet], [0])
        with pytest.raises(OSError, match="no message") as raised:
            messages.receive(theirs, 1)
        assert raised.value.errno == errno.EBADMSG
        assert process.descriptors() == before


def test_full_socket_raises_without_waiting() -> None:
    """`BlockingIOError` is raised when the socket is full and the sender must not wait."""
    ours, theirs = messages.socket_pair()
    with ours, theirs:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(b"x")
        ours.setblocking(True)
        with pytest.raises(BlockingIOError):
            messages.send(ours, Go(), wait=False)


def test_job_is_sealed() -> None:
    """A template passes the job on and cannot change it."""
    fd = messages.write_job(Job("i", 1, {}, {}, datetime(2025, 8, 10, tzinfo=UTC), SOURCE, "/task", 1.0))
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_end_of_socket_is_none() -> None:
    """At the end of the socket there is no message, and no descriptor."""
    ours, theirs = messages.socket_pair()
    with theirs:
        ours.close()
        assert messages.receive(theirs) == (None, [])


def test_job_of_any_size_in_memfd() -> None:
    """A job may be larger than any packet, and is readable from several descriptors."""
    job = Job(
        item_id="i",
        epoch=3,
        ti={"id": "t"},
        ti_context={"dag_run": {"conf": {"big": "x" * 1_000_000}}},
        start_date=datetime(2025, 8, 10, tzinfo=UTC),
        source=SOURCE,
        working_dir="/task",
        kill_grace_seconds=5.0,
    )
    fd = messages.write_job(job)
    assert messages.read_job(os.dup(fd)) == job
    assert messages.read_job(fd) == job


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, float("inf"), "\ud800"])
def test_job_of_any_value(value: object) -> None:
    """A run's conf may hold what Python's JSON holds, larger integers than 64 bits included."""
    context = {"dag_run": {"conf": {"wei": value}}}
    job = Job("i", 1, {}, context, datetime(2025, 8, 10, tzinfo=UTC), SOURCE, "/task", 1.0)
    fd = messages.write_job(job)
    assert messages.read_job(fd) == job
    os.close(fd)
