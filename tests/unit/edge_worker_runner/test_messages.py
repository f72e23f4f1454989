"""What the runner's processes say to each other."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import UTC, datetime

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


def test_no_more_descriptors_arrive_than_are_expected() -> None:
    """Those that nobody asked for are not kept open here: the sender may be a template, and its DAG file hostile."""
    ours, theirs = messages.socket_pair()
    with ours, theirs:
        before = process.descriptors()
        messages.send(ours, Go(), (0, 1, 2))
        assert messages.receive(theirs) == (Go(), [])
        assert process.descriptors() == before


@pytest.mark.parametrize("packet", [b"x", b"\xc1", b"y" * 100_000], ids=["text", "no msgpack", "too long"])
def test_what_is_no_message_is_an_error_of_the_socket(packet: bytes) -> None:
    """Whoever hears it takes it for the other's end, and keeps no descriptor of it."""
    ours, theirs = messages.socket_pair()
    with ours, theirs:
        before = process.descriptors()
        socket.send_fds(ours, [packet], [0])
        with pytest.raises(OSError, match="no message"):
            messages.receive(theirs, 1)
        assert process.descriptors() == before


def test_a_full_socket_is_not_waited_for_by_whoever_cannot_wait() -> None:
    """`BlockingIOError`, in place of a standstill."""
    ours, theirs = messages.socket_pair()
    with ours, theirs:
        ours.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                ours.send(b"x")
        ours.setblocking(True)
        with pytest.raises(BlockingIOError):
            messages.send(ours, Go(), wait=False)


def test_a_job_cannot_be_changed_by_who_carries_it() -> None:
    """A template hands it on, and may not be honest."""
    fd = messages.write_job(Job("i", 1, {}, {}, datetime(2025, 8, 10, tzinfo=UTC), SOURCE, "/room", 1.0))
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)


def test_the_end_of_the_socket_is_no_message() -> None:
    """None, and no descriptors."""
    ours, theirs = messages.socket_pair()
    with theirs:
        ours.close()
        assert messages.receive(theirs) == (None, [])


def test_a_job_of_any_size_travels_in_memory() -> None:
    """Larger than any packet, and readable from several descriptors."""
    job = Job(
        item_id="i",
        epoch=3,
        ti={"id": "t"},
        ti_context={"dag_run": {"conf": {"big": "x" * 1_000_000}}},
        start_date=datetime(2025, 8, 10, tzinfo=UTC),
        source=SOURCE,
        room="/room",
        kill_grace_seconds=5.0,
    )
    fd = messages.write_job(job)
    assert messages.read_job(os.dup(fd)) == job
    assert messages.read_job(fd) == job
