"""Connections of the AWS emulator, kept between requests as AWS keeps them.

werkzeug's server closes each connection after its first answer, and so every call of boto3 would begin with a new one, and a
new thread here. Imports moto: for the emulator's own process.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

from moto.moto_server.werkzeug_app import MotoRequestHandler
from werkzeug.exceptions import ClientDisconnected, InternalServerError
from werkzeug.wsgi import LimitedStream

# A connection that has carried no request for so long is closed. SQS and S3 close theirs after some such time, too.
IDLE_SECONDS: Final = 60.0
_PIECE_BYTES: Final = 1024 * 1024
_WITHOUT_CONTENT: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class KeepAliveHandler(MotoRequestHandler):  # type: ignore[misc]  # moto has no types
    """Answers the requests of one connection, each with a Content-Length, until the client or the idle timeout ends it."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    # An answer leaves in one piece, and a second piece must not wait for the client's delayed acknowledgement (40 ms).
    wbufsize = 64 * 1024
    disable_nagle_algorithm = True

    def handle_one_request(self) -> None:
        """Answer the next request; close the connection if none arrives in time."""
        try:
            arrived = self.rfile.peek(1)
        except TimeoutError:
            arrived = b""
        if arrived:
            super().handle_one_request()
        else:
            self.close_connection = True

    def handle_expect_100(self) -> bool:
        """Tell a client that waits with its body to send it."""
        proceed: bool = super().handle_expect_100()
        self.wfile.flush()
        return proceed

    def run_wsgi(self) -> None:
        """Call the application, send its answer, and skip what it has not read of the request."""
        self.environ = environ = self.make_environ()
        if not environ.get("wsgi.input_terminated"):
            # Bounded: the next request follows.
            environ["wsgi.input"] = LimitedStream(self.rfile, int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input_terminated"] = True
        body = environ["wsgi.input"]
        self._send(*self._answer(environ))
        try:
            while body.read(_PIECE_BYTES):
                pass
        except (OSError, ClientDisconnected):
            self.close_connection = True

    def finish(self) -> None:
        """End the connection; what a client that is gone was not sent is dropped."""
        with suppress(OSError):
            super().finish()

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing: the emulator's log is of warnings and errors."""

    def _answer(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
        try:
            return _called(self.server.app, environ)
        except Exception:  # noqa: BLE001 - the outer edge: the client is told, as by any server
            self.log_error("%s", traceback.format_exc())
            return _called(InternalServerError(), environ)

    def _send(self, status: str, headers: list[tuple[str, str]], content: bytes) -> None:
        code, _, reason = status.partition(" ")
        bodiless = self.command == "HEAD" or int(code) in _WITHOUT_CONTENT
        self.send_response(int(code), reason)
        for name, value in headers:
            if bodiless or name.lower() != "content-length":
                self.send_header(name, value)
        if not bodiless:
            self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if not bodiless:
            self.wfile.write(content)
        self.wfile.flush()


def _called(application: Any, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], bytes]:
    """Return status, headers and content of an application's answer, which is in memory in any case."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    written: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Any:
        started.append((status, headers))
        return written.append

    pieces: Iterable[bytes] = application(environ, start_response)
    try:
        written.extend(pieces)
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    return (*started[-1], b"".join(written))
