"""The faulty network itself: each kind of weather has the effect of its name, on real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.support import weather
from tests.support.platform import wait_for
from tests.support.weather import Flow, Link, Network, Weather


class Echo:
    """A server that answers every line with the line and a tail, and records the received lines."""

    def __init__(self, tail: bytes = b"") -> None:
        self.heard: list[bytes] = []
        self.tail = tail
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(65536):
                    self.heard.append(data)
                    connection.sendall(data + self.tail)
            except OSError:
                return

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.stop()


@pytest.fixture
def link(echo: Echo) -> Iterator[Link]:
    with Network() as network:
        yield network.link(echo.port)


def connect(link: Link, timeout: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), timeout=timeout)


def ask(link: Link, text: bytes = b"hello") -> bytes:
    with connect(link) as sock:
        sock.sendall(text)
        return sock.recv(65536)


def receives_nothing(sock: socket.socket, seconds: float = 0.2) -> bool:
    sock.settimeout(seconds)
    try:
        return not sock.recv(1)
    except TimeoutError:
        return True


def is_reset(sock: socket.socket) -> bool:
    sock.settimeout(5)
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def test_fair_weather_carries_both_ways(link: Link, echo: Echo) -> None:
    """Bytes arrive unchanged, and are counted."""
    assert ask(link) == b"hello"
    assert echo.heard == [b"hello"]
    # The answer is here before its bytes are counted.
    wait_for(lambda: link.counts["bytes down"] == 5, "the answer to be counted")
    assert (link.counts["connections"], link.counts["bytes up"]) == (1, 5)


def test_refusing_resets_and_refuses(link: Link) -> None:
    """Open connections are reset and new ones refused by the kernel; the port belongs to the link again
    afterwards.
    """
    with connect(link) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        link.set(weather.REFUSE)
        assert is_reset(sock)
    with pytest.raises(ConnectionRefusedError):
        connect(link)
    link.set(weather.FAIR)
    assert ask(link) == b"hello"


def test_black_hole_passes_nothing(link: Link, echo: Echo) -> None:
    """Connections stand, nothing passes in either direction."""
    link.set(weather.BLACK_HOLE)
    with connect(link) as sock:
        sock.sendall(b"x")
        assert receives_nothing(sock)
    assert echo.heard == []


def test_what_was_held_back_arrives_late(link: Link, echo: Echo) -> None:
    """As TCP would: if the connection is left alone, the bytes come through when the hole closes."""
    link.set(weather.BLACK_HOLE)
    with connect(link) as sock:
        sock.sendall(b"x")
        assert receives_nothing(sock)
        link.set(weather.FAIR, breaks=False)
        sock.settimeout(5)
        assert sock.recv(1) == b"x"


def test_closing_black_hole_resets_connections(link: Link) -> None:
    """By default, connections that were open through the cut are closed after it."""
    link.set(weather.BLACK_HOLE)
    with connect(link) as sock:
        sock.sendall(b"x")
        assert receives_nothing(sock)
        link.set(weather.FAIR)
        assert is_reset(sock)


def test_answers_lost(link: Link, echo: Echo) -> None:
    """The request arrives; its answer does not."""
    link.set(weather.LOSE_ANSWERS)
    with connect(link) as sock:
        sock.sendall(b"x")
        assert receives_nothing(sock)
    assert echo.heard == [b"x"]


def test_requests_lost(link: Link, echo: Echo) -> None:
    """Answers would get through, but the request never arrives."""
    with connect(link) as sock:
        link.set(weather.LOSE_REQUESTS)
        sock.sendall(b"x")
        assert receives_nothing(sock)
    assert echo.heard == []


def test_reset_in_middle_of_answer(link: Link, echo: Echo) -> None:
    """A given number of bytes pass, then both ends are reset; the next connection meets the same."""
    echo.tail = b"." * 100_000
    link.set(Weather(down=Flow(reset_after_bytes=1000)))
    for _ in range(2):
        with connect(link) as sock:
            sock.sendall(b"x")
            assert is_reset(sock)
    assert link.counts["bytes down"] == 2000
    assert link.counts["resets"] == 2


def test_flapping_comes_and_goes(link: Link) -> None:
    """Refused now, served soon after, again and again."""
    link.set(Weather(flaps_every_seconds=0.1))
    seen = set()
    deadline = time.monotonic() + 10
    while len(seen) < 2 and time.monotonic() < deadline:
        try:
            seen.add(ask(link) == b"hello")
        except OSError:
            seen.add(False)
    assert seen == {True, False}


def test_latency_delays_and_keeps_order(link: Link) -> None:
    """No byte overtakes another, whatever the jitter; none is early."""
    link.set(Weather(up=Flow(delay_seconds=0.1, jitter_seconds=0.05)))
    with connect(link) as sock:
        began = time.monotonic()
        for number in range(10):
            sock.sendall(b"%d" % number)
            time.sleep(0.005)
        heard = b""
        while len(heard) < 10:
            heard += sock.recv(10)
        assert time.monotonic() - began >= 0.1
    assert heard == b"0123456789"


def test_bandwidth_is_a_bound(link: Link) -> None:
    """A narrow link takes at least bytes over rate."""
    link.set(Weather(up=Flow(bytes_per_second=100_000)))
    with connect(link) as sock:
        began = time.monotonic()
        sock.sendall(b"x" * 30_000)
        heard = 0
        while heard < 30_000:
            heard += len(sock.recv(65536))
        assert time.monotonic() - began >= 0.29


def test_a_link_can_be_pointed_elsewhere(link: Link) -> None:
    """New connections go to the new target."""
    other = Echo(tail=b"!")
    try:
        link.retarget(other.port)
        assert ask(link) == b"hello!"
    finally:
        other.stop()


def test_every_kind_has_its_name() -> None:
    """Reports call each kind of weather by its name."""
    assert {kind.name for kind in weather.KINDS.values()} == set(weather.KINDS)
