"""An emulator whose presigned URLs expire, as S3's do: a proxy in front of one that does not look at their time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import httpx

_EXPIRED = b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
_HOP_BY_HOP = frozenset(
    {"connection", "content-encoding", "content-length", "date", "server", "transfer-encoding"}
)


@dataclass
class Expiring:
    """The proxy's URL, and the presigned requests that it received: path, and whether its URL was still valid."""

    url: str
    requests: list[tuple[str, bool]] = field(default_factory=list)


def is_valid(query: str) -> bool:
    """Return whether a presigned URL with this query has not expired."""
    values = parse_qs(query)
    signed = datetime.strptime(values["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return datetime.now(UTC) <= signed + timedelta(seconds=int(values["X-Amz-Expires"][0]))


@contextmanager
def expiring(target: str) -> Iterator[Expiring]:
    """Serve in front of the emulator at `target` for the length of a block."""
    made = Expiring("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            split = urlsplit(self.path)
            if "X-Amz-Expires=" in split.query:
                valid = is_valid(split.query)
                made.requests.append((split.path, valid))
                if not valid:
                    self._answer(403, {}, _EXPIRED)
                    return
            answer = httpx.request(
                self.command,
                f"{target}{self.path}",
                headers=dict(self.headers),
                content=body,
                trust_env=False,
            )
            headers = {name: text for name, text in answer.headers.items() if name not in _HOP_BY_HOP}
            self._answer(answer.status_code, headers, answer.content)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, text in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
