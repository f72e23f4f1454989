"""OTLP sink: spans over HTTP and protobuf, by OpenTelemetry's exporter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Final

from airbridge.control_plane.exceptions import Unavailable
from airbridge.control_plane.tracing.spans import Span

TIMEOUT_SECONDS: Final = 5


class Collector:
    """OTLP endpoint, such as ``http://127.0.0.1:4318/v1/traces``."""

    def __init__(self, endpoint: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT_SECONDS)
        self._endpoint = endpoint

    def send(self, spans: Sequence[Span]) -> None:
        """Send spans. Raises `Unavailable` if the collector did not accept them."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        failed = f"the collector {self._endpoint} did not accept {len(spans)} spans"
        try:
            result = self._exporter.export([_readable(span) for span in spans])
        # Those of requests, which the exporter passes on: no connection, no answer in time.
        except OSError as error:
            raise Unavailable(f"{failed}: {error}") from error
        if result is not SpanExportResult.SUCCESS:
            raise Unavailable(failed)

    def close(self) -> None:
        """Close the connection."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call] # the SDK leaves it untyped


def _readable(span: Span) -> Any:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    def context(span_id: int) -> SpanContext:
        return SpanContext(
            span.trace_id, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED)
        )

    return ReadableSpan(
        name=span.name,
        context=context(span.span_id),
        parent=context(span.parent_id) if span.parent_id is not None else None,
        resource=_resource(span.service, span.host),
        attributes=span.attributes,
        kind=SpanKind.INTERNAL,
        status=Status(StatusCode.ERROR, span.failed) if span.failed else Status(StatusCode.UNSET),
        start_time=_nanoseconds(span.began_at),
        end_time=_nanoseconds(span.ended_at),
        instrumentation_scope=_scope(),
    )


@lru_cache(maxsize=1024)
def _resource(service: str, host: str | None) -> Any:
    from opentelemetry.sdk.resources import Resource

    return Resource({"service.name": service, **({"host.name": host} if host else {})})


@lru_cache(maxsize=1)
def _scope() -> Any:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    return InstrumentationScope("airbridge", version("airbridge-control-plane"))


def _nanoseconds(at: datetime) -> int:
    whole = int(at.timestamp())
    return whole * 1_000_000_000 + at.microsecond * 1_000
