"""A supervisor's handle of its task, opposite a template that sends what it likes."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from airbridge.edge_worker.runner import messages
from airbridge.edge_worker.runner.messages import Exited, Forked, Message
from airbridge.edge_worker.runner.task_handle import CHALLENGE_BYTES, NotForkedError, TaskHandle


@contextmanager
def template(
    answer: Message, sent_back: bytes | None = None, template: int | None = None
) -> Iterator[tuple[TaskHandle, socket.socket]]:
    """A handle whose template answers so, and whose task, this process, sends the challenge back, or other bytes.

    `template`: its process id, that of this process's parent if None.
    """
    ours, theirs = messages.socket_pair()
    zygote, of_zygote = messages.socket_pair()
    requests, of_task = socket.socketpair()

    def serve() -> None:
        _message, fds = messages.receive(theirs, 1)
        for fd in fds:
            os.close(fd)
        messages.send(theirs, answer)
        challenge = of_task.recv(CHALLENGE_BYTES)
        if challenge:
            of_task.sendall(challenge if sent_back is None else sent_back)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield TaskHandle(ours, zygote, os.getppid() if template is None else template), requests
    finally:
        for sock in (requests, ours):
            sock.close()
        thread.join()
        for sock in (of_task, theirs, zygote, of_zygote):
            sock.close()


def fork(handle: TaskHandle, requests: socket.socket) -> int:
    withdrawn, other_end = socket.socketpair()
    with withdrawn, other_end:
        remote = handle.fork([requests.fileno()], requests, withdrawn)
    pid = remote.pid
    os.close(remote.fileno())
    return pid


def test_process_that_answers_is_the_task() -> None:
    """The template names the process at the other end of the requests socket."""
    with template(Forked(os.getpid())) as (handle, requests):
        assert os.getpid() == fork(handle, requests)


@pytest.fixture
def sibling() -> Iterator[int]:
    """A child of this process, which has nothing of the task's."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def test_other_process_is_not_the_task(sibling: int) -> None:
    """A template cannot have a supervisor signal a process that is not its task's, nor another task of its own."""
    with (
        template(Forked(sibling)) as (handle, requests),
        pytest.raises(NotForkedError, match="is no child of it"),
    ):
        fork(handle, requests)
    with (
        template(Forked(sibling), template=os.getpid()) as (handle, requests),
        pytest.raises(NotForkedError, match="does not answer as the task"),
    ):
        fork(handle, requests)


def test_wrong_answer_is_refused() -> None:
    """An answer that does not repeat the challenge may have been sent before it, and proves nothing."""
    with (
        template(Forked(os.getpid()), b"0" * CHALLENGE_BYTES) as (handle, requests),
        pytest.raises(NotForkedError, match="does not answer as the task"),
    ):
        fork(handle, requests)


def test_template_without_task_is_refused() -> None:
    """A template that sends something else has forked nothing."""
    with (
        template(Exited(0)) as (handle, requests),
        pytest.raises(NotForkedError, match="the template has ended"),
    ):
        fork(handle, requests)
