"""The task's channel to its supervisor, with requests that are given up: every later request gets its own answer."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

import msgspec
import pytest
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.sdk.execution_time.comms import GetVariable, SetXCom, _RequestFrame, _ResponseFrame

from airbridge.edge_worker._airflow.region_messages import TO_TASK
from airbridge.edge_worker._airflow.task_process import TaskComms


class TimedOutError(BaseException):
    """As `AirflowTaskTimeout`, no `Exception`."""


Pair = tuple[TaskComms, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    with ours, theirs:
        yield TaskComms(socket=ours, body_decoder=TO_TASK, err_decoder=TO_TASK), theirs


@contextmanager
def alarm(handler: Any, seconds: float = 0.1) -> Iterator[None]:
    """Have `handler` called soon, as Airflow's timeout does."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def time_out(_signal: int, _frame: FrameType | None) -> None:
    raise TimedOutError


def answer(number: int, value: str) -> bytes:
    body = {"type": "VariableResult", "key": "k", "value": value}
    return bytes(_ResponseFrame(id=number, body=body).as_bytes())


def received(supervisor: socket.socket, count: int) -> list[_RequestFrame]:
    """Receive so many requests. Raises `TimeoutError`."""
    found: list[_RequestFrame] = []
    data = bytearray()
    while len(found) < count:
        data += supervisor.recv(1 << 20)
        while len(data) >= 4 and len(data) >= (end := 4 + int.from_bytes(data[:4], "big")):
            found.append(msgspec.msgpack.decode(bytes(data[4:end]), type=_RequestFrame))
            del data[:end]
    return found


def test_answer_given_up_is_dropped(pair: Pair) -> None:
    """A request after a timeout gets its own answer, also behind that of the request before."""
    comms, supervisor = pair
    with alarm(time_out), pytest.raises(TimedOutError):
        comms.send(GetVariable(key="slow"))
    supervisor.sendall(answer(0, "late") + answer(1, "right"))
    assert comms.send(GetVariable(key="k")).value == "right"
    assert [request.id for request in received(supervisor, 2)] == [0, 1]


def test_blocked_signals_stay_blocked(pair: Pair) -> None:
    """A task that has blocked SIGTERM, for a section of its own, still has it blocked after a request."""
    comms, supervisor = pair
    supervisor.sendall(answer(0, "v"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        comms.send(GetVariable(key="k"))
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_answer_in_pieces_survives_timeout(pair: Pair) -> None:
    """A timeout in the middle of an answer leaves the rest of it to be read."""
    comms, supervisor = pair
    late = answer(0, "late" * 100)
    supervisor.sendall(late[:50])
    with alarm(time_out), pytest.raises(TimedOutError):
        comms.send(GetVariable(key="slow"))
    supervisor.sendall(late[50:] + answer(1, "right"))
    assert comms.send(GetVariable(key="k")).value == "right"


def test_request_in_pieces_survives_timeout(pair: Pair) -> None:
    """A timeout in the middle of a large request leaves the rest of it to be sent before the next."""
    comms, supervisor = pair
    large = SetXCom(key="k", value="x" * 4_000_000, dag_id="d", run_id="r", task_id="t")
    with alarm(time_out), pytest.raises(TimedOutError):
        comms.send(large)

    def serve() -> list[_RequestFrame]:
        requests = received(supervisor, 2)
        supervisor.sendall(answer(0, "late") + answer(1, "right"))
        return requests

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        assert comms.send(GetVariable(key="k")).value == "right"
        first, second = serving.result(10)
    assert first.body is not None
    assert len(first.body["value"]) == 4_000_000
    assert (second.id, second.body) == (1, GetVariable(key="k").model_dump())


def test_request_within_a_request(pair: Pair) -> None:
    """A handler of a signal makes a request while another one waits: each gets its own answer."""
    comms, supervisor = pair
    inner: list[str] = []

    def ask(_signal: int, _frame: FrameType | None) -> None:
        supervisor.sendall(answer(0, "outer") + answer(1, "inner"))
        inner.append(comms.send(GetVariable(key="inner")).value)

    with alarm(ask):
        assert comms.send(GetVariable(key="outer")).value == "outer"
    assert inner == ["inner"]


def test_refusals_and_end_are_raised(pair: Pair) -> None:
    """An error frame raises the Task SDK's error, and the end of the socket raises `EOFError`."""
    comms, supervisor = pair
    error = {"type": "ErrorResponse", "error": "API_SERVER_ERROR", "detail": {"status_code": 409}}
    supervisor.sendall(_ResponseFrame(id=0, error=error).as_bytes())
    with pytest.raises(AirflowRuntimeError):
        comms.send(GetVariable(key="k"))
    supervisor.shutdown(socket.SHUT_WR)
    with pytest.raises(EOFError):
        comms.send(GetVariable(key="k"))
