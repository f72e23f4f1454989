"""What the runner's processes say to each other."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from airbridge.edge_worker.runner import messages
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
        received = [messages.receive(theirs) for _ in sent]
        assert [message for message, _fds in received] == sent
        os.write(received[0][1][0], b"same")
        assert os.read(read, 10) == b"same"
        for _message, fds in received:
            assert [os.get_inheritable(fd) for fd in fds] == [False]
            os.close(fds[0])
    os.close(read)
    os.close(write)


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
