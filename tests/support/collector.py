"""A real OTLP receiver on loopback: HTTP with protobuf, as an OpenTelemetry collector has it."""

from __future__ import annotations

import gzip
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Got:
    """A span that arrived, with its resource's attributes."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    began: float
    ended: float
    failed: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Collector:
    """Spans that arrived. A span id that comes twice is one span. While `closed`, every request is answered 503."""

    spans: dict[tuple[str, str], Got] = field(default_factory=dict)
    requests: int = 0
    closed: bool = False
    port: int = 0

    @property
    def endpoint(self) -> str:
        """URL to configure as the traces endpoint."""
        return f"http://127.0.0.1:{self.port}/v1/traces"

    def of_tasks(self, dag_id: str) -> dict[tuple[str, int], list[Got]]:
        """The spans of each task of a DAG, in order of their beginnings."""
        found: defaultdict[tuple[str, int], list[Got]] = defaultdict(list)
        for span in self.spans.values():
            said = span.attributes
            if said["airflow.dag_id"] == dag_id:
                found[said["airflow.task_id"], said["airflow.task_instance.map_index"]].append(span)
        return {task: sorted(spans, key=lambda span: span.began) for task, spans in found.items()}

    def orphans(self, known: frozenset[str] = frozenset()) -> list[Got]:
        """Spans whose parent never arrived, but for those whose parent is among `known`."""
        ids = {span_id for _, span_id in self.spans} | known
        return [span for span in self.spans.values() if span.parent_id and span.parent_id not in ids]

    def take(self, body: bytes) -> None:
        """Keep the spans of one request."""
        request = ExportTraceServiceRequest.FromString(body)
        self.requests += 1
        for resource_spans in request.resource_spans:
            resource = _attributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    got = Got(
                        name=span.name,
                        trace_id=span.trace_id.hex(),
                        span_id=span.span_id.hex(),
                        parent_id=span.parent_span_id.hex() or None,
                        began=span.start_time_unix_nano / 1e9,
                        ended=span.end_time_unix_nano / 1e9,
                        failed=span.status.code == 2,
                        attributes=_attributes(span.attributes),
                        resource=resource,
                    )
                    self.spans[got.trace_id, got.span_id] = got


def connected(spans: list[Got]) -> str | None:
    """Return the reason why a task's spans are not one connected trace from place to commit; None if they are."""
    if len({span.trace_id for span in spans}) != 1:
        return f"{len({span.trace_id for span in spans})} traces"
    ids = {span.span_id for span in spans}
    roots = [span for span in spans if span.parent_id not in ids]
    if [span.name for span in roots] != ["task"] * len(roots) or not roots:
        return f"roots {[span.name for span in roots]}"
    names = {span.name for span in spans}
    missing = {"place", "send", "receive", "claim", "grant", "fork", "run", "report", "commit"} - names
    if missing:
        return f"without {sorted(missing)}"
    backwards = [span.name for span in spans if span.ended < span.began]
    return f"{backwards} end before they begin" if backwards else None


@contextmanager
def collecting() -> Iterator[Collector]:
    """Run a receiver."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer = b"" if collector.closed else ExportTraceServiceResponse().SerializeToString()
            if not collector.closed:
                collector.take(body)
            self.send_response(400 if collector.closed else 200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            """Do not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None
