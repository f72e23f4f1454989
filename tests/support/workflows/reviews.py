"""GitHub's review history of a workflow's run, served on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.workflows.hub import NAME, TOKEN

RUN_ID = "4711"
#: Who reviewed, what that person decided, and for which environment; the newest first.
Review = tuple[str, str, str]


@contextmanager
def serving_reviews(reviews: Sequence[Review]) -> Iterator[str]:
    """Serve reviews, which may change meanwhile, to who has the run's token; yields the API's URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = f"/repos/{NAME}/actions/runs/{RUN_ID}/approvals"
            status = 200 if self.path == wanted else 404
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                status = 403
            answer = [
                {
                    "state": state,
                    "environments": [{"name": environment}],
                    "user": {"login": login},
                    "comment": "",
                }
                for login, state, environment in reviews
            ]
            body = json.dumps(answer if status == 200 else {"message": "no"}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
