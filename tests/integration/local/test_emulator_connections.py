"""Connections to the AWS emulator: kept between calls as AWS keeps them, whatever the calls were."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from werkzeug.serving import make_server

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.services.emulator_connections import KeepAliveHandler

LARGE = 3_000_000


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer with the client's port, by which a test recognises a connection."""
    path = environ["PATH_INFO"]
    if path == "/broken":
        raise LookupError("a defect of the emulator")
    if path == "/none":
        start_response("204 No Content", [])
        return []
    if path == "/object" and environ["REQUEST_METHOD"] == "HEAD":
        start_response("200 OK", [("Content-Length", "12345")])
        return []
    if path == "/echo":
        length = environ.get("CONTENT_LENGTH")
        body = environ["wsgi.input"].read(int(length) if length else -1)
        start_response("200 OK", [])
        return iter([body[:5], body[5:]])
    if path == "/wait":
        time.sleep(0.5)
    status = "404 Not Found" if path == "/missing" else "200 OK"
    start_response(status, [("Content-Type", "text/plain")])
    return [str(environ["REMOTE_PORT"]).encode()]


class QuickHandler(KeepAliveHandler):
    """The handler with a short idle timeout, in seconds."""

    timeout = 0.2


@contextmanager
def served(handler: type[KeepAliveHandler] = KeepAliveHandler) -> Iterator[int]:
    server = make_server(ports.LOOPBACK, 0, application, threaded=True, request_handler=handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def connection() -> Iterator[http.client.HTTPConnection]:
    """A connection that is not made again after the server closes it."""
    with served() as port, closing(http.client.HTTPConnection(ports.LOOPBACK, port, timeout=10)) as made:
        made.connect()
        made.auto_open = 0
        yield made


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, **headers: str
) -> tuple[int, bytes]:
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_calls_share_connection(connection: http.client.HTTPConnection) -> None:
    """Two requests of one client arrive over one TCP connection."""
    first = ask(connection, "GET", "/port")
    assert ask(connection, "GET", "/port") == first


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/missing", 404),
        ("GET", "/broken", 500),
        ("DELETE", "/none", 204),
        ("HEAD", "/missing", 404),
        ("HEAD", "/broken", 500),
    ],
)
def test_connection_survives_any_answer(
    connection: http.client.HTTPConnection, method: str, path: str, status: int
) -> None:
    """Errors, answers without content and answers to HEAD have an end that the client finds."""
    assert ask(connection, method, path)[0] == status
    assert ask(connection, "GET", "/port")[0] == 200


def test_head_tells_object_length(connection: http.client.HTTPConnection) -> None:
    """HEAD is answered with the length of the content that GET would have, and without content."""
    connection.request("HEAD", "/object")
    answer = connection.getresponse()
    assert (answer.length, answer.headers["Content-Length"], answer.read()) == (0, "12345", b"")
    assert ask(connection, "GET", "/port")[0] == 200


def test_unread_body_is_skipped(connection: http.client.HTTPConnection) -> None:
    """Content that the application does not read is not taken for the next request."""
    assert ask(connection, "PUT", "/port", b"x" * LARGE)[0] == 200
    assert ask(connection, "GET", "/port")[0] == 200


def test_chunked_body_is_read(connection: http.client.HTTPConnection) -> None:
    """A body of unknown length is read to its end, and skipped to its end."""
    assert ask(connection, "PUT", "/echo", iter([b"some", b"thing"])) == (200, b"something")
    assert ask(connection, "PUT", "/port", iter([b"x" * LARGE]))[0] == 200
    assert ask(connection, "GET", "/port")[0] == 200


def test_expectation_is_answered_once(connection: http.client.HTTPConnection) -> None:
    """A client that waits for "100 Continue", as boto3 does before an upload, gets it once."""
    sock = connection.sock
    sock.sendall(b"PUT /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(b"hello")
    answer = sock.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"hello")


def test_client_may_close(connection: http.client.HTTPConnection) -> None:
    """A request with "Connection: close" is the last one of its connection."""
    connection.request("GET", "/port", headers={"Connection": "close"})
    answer = connection.getresponse()
    assert answer.headers["Connection"] == "close"
    answer.read()
    with pytest.raises(http.client.NotConnected):
        connection.request("GET", "/port")


def test_idle_connection_is_closed() -> None:
    """A connection without a request is closed after the idle timeout; one whose answer takes longer is not."""
    with served(QuickHandler) as port, socket.create_connection((ports.LOOPBACK, port), timeout=10) as sock:
        sock.sendall(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        assert sock.recv(1000) == b""


@pytest.mark.parametrize("body", [b"", b"half"])
def test_client_may_vanish(body: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """A client that is gone before its answer, or in the middle of its body, is no error of the emulator."""
    with served() as port:
        sock = socket.create_connection((ports.LOOPBACK, port), timeout=10)
        # Closed with a reset, as the kernel closes the connections of a killed process that has unread data.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.sendall(b"PUT /wait HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (2 * len(body)) + body)
        time.sleep(0.1)
        sock.close()
        time.sleep(0.7)
    assert capfd.readouterr().err == ""


def test_body_may_end_early(capfd: pytest.CaptureFixture[str]) -> None:
    """A body that ends before its length ends the connection, after the answer."""
    with served() as port, socket.create_connection((ports.LOOPBACK, port), timeout=10) as sock:
        sock.sendall(b"PUT /port HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\n\r\nhalf")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        assert sock.recv(1000) == b""
    assert capfd.readouterr().err == ""
