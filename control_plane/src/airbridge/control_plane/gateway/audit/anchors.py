"""Anchors of the audit trail: its last link, written on a schedule to places that the database's owner does not own.

A chain cannot reveal that its end is missing; an anchor can. Each gateway compares the chain with the anchors that it finds before it
writes the next one, so a trail that was truncated or rewritten is reported within one interval, and `airbridge audit --verify` names what is
missing. Rows that were written and removed between two anchors leave no trace here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import parse_qs, urlsplit

import structlog
from sqlalchemy import exc as sql
from sqlalchemy import select

from airbridge.control_plane.gateway.database import unit
from airbridge.core.aws.object_store import ObjectStore, connect
from airbridge.core.exceptions import ConfigurationError, PreconditionFailed, StoreError
from airbridge.executor.ledger import audit, clock
from airbridge.executor.ledger.models import AuditSealRow

log = structlog.get_logger()

# How far back a bucket is searched for the last anchor.
KEPT_DAYS: Final = 400
READ_LINES: Final = 1_000
FAULTS: Final = ("truncated", "rewritten", "unwritten", "unread")
FORMS: Final = "file:///path, s3://bucket/prefix?region=NAME or syslog://host:port"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A link of the chain, and when it was the last one."""

    seq: int
    hash: str
    at: str

    def text(self) -> str:
        """Return it as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)


class AnchorSink(Protocol):
    """A place for anchors."""

    @property
    def name(self) -> str:
        """Name of the place in logs and reports: a path or a URL."""

    def write(self, anchor: Anchor) -> None:
        """Keep an anchor. Raises `OSError` or `StoreError`."""

    def read(self) -> list[Anchor]:
        """Return the last anchors; none from a place that cannot be read back. Raises `OSError` or `StoreError`.

        Lines that are no anchors are left out.
        """


@dataclass(frozen=True, slots=True)
class FileSink:
    """A file that is only appended to."""

    path: Path

    @property
    def name(self) -> str:
        """See `AnchorSink.name`."""
        return str(self.path)

    def write(self, anchor: Anchor) -> None:
        """See `AnchorSink.write`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{anchor.text()}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self) -> list[Anchor]:
        """See `AnchorSink.read`."""
        if not self.path.exists():
            return []
        return _parsed(self.path.read_text(errors="replace").splitlines()[-READ_LINES:])


@dataclass(frozen=True, slots=True)
class BucketSink:
    """A bucket's prefix, with an object per anchor. Object Lock with a default retention makes it write-once."""

    store: ObjectStore
    prefix: str

    @property
    def name(self) -> str:
        """See `AnchorSink.name`."""
        return f"s3://{self.store.bucket}/{self.prefix}"

    def write(self, anchor: Anchor) -> None:
        """See `AnchorSink.write`."""
        key = f"{self._day(datetime.now(UTC))}{anchor.seq:020d}-{anchor.hash[:16]}.json"
        try:
            self.store.put(key, anchor.text().encode(), if_absent=True)
        except PreconditionFailed:  # another gateway was first
            return

    def read(self) -> list[Anchor]:
        """See `AnchorSink.read`."""
        today = datetime.now(UTC)
        for days in range(KEPT_DAYS):
            found = list(self.store.list(self._day(today - timedelta(days=days))))
            if found:
                return _parsed(self.store.get(each.key).data.decode(errors="replace") for each in found[-3:])
        return []

    def _day(self, at: datetime) -> str:
        return f"{self.prefix.rstrip('/')}/{at:%Y-%m-%d}/"


class SyslogSink:
    """A syslog server, by UDP. Not read back: give its lines to ``airbridge audit --verify --anchor``."""

    def __init__(self, host: str, port: int) -> None:
        self.name = f"syslog://{host}:{port}"
        self._address = (host, port)

    def write(self, anchor: Anchor) -> None:
        """See `AnchorSink.write`."""
        text = f"airbridge-audit-anchor {anchor.text()}"
        handler = SysLogHandler(self._address, SysLogHandler.LOG_AUTH)
        try:
            handler.emit(logging.LogRecord("airbridge.audit", logging.INFO, "", 0, text, None, None))
        finally:
            handler.close()

    def read(self) -> list[Anchor]:
        """See `AnchorSink.read`."""
        return []


def sinks(urls: str) -> list[AnchorSink]:
    """Return the places that a setting names. Raises `ConfigurationError`."""
    return [_sink(url.strip()) for url in urls.split(",") if url.strip()]


def _sink(url: str) -> AnchorSink:
    parts = urlsplit(url)
    region = parse_qs(parts.query).get("region", [""])[0]
    endpoint = parse_qs(parts.query).get("endpoint_url", [None])[0]
    if parts.scheme == "file" and parts.path.startswith("/") and not parts.netloc:
        return FileSink(Path(parts.path))
    if parts.scheme == "s3" and parts.netloc and parts.path.strip("/") and region:
        store = connect(region, parts.netloc, endpoint_url=endpoint)
        return BucketSink(store, parts.path.strip("/"))
    if parts.scheme == "syslog" and parts.hostname:
        return SyslogSink(parts.hostname, parts.port or 514)
    raise ConfigurationError(f"[airbridge] audit_anchors: {url!r} must read {FORMS}")


class Anchors:
    """Writes anchors and compares the chain with them. `run` until cancelled."""

    def __init__(self, sinks: Sequence[AnchorSink], fault: Callable[[str], None]) -> None:
        self._sinks = sinks
        self._fault = fault
        self._written = 0

    async def run(self, interval_seconds: float) -> None:
        """Look and write until cancelled."""
        log.info(
            "anchors.started", interval_seconds=interval_seconds, places=[each.name for each in self._sinks]
        )
        try:
            while self._sinks:
                await asyncio.to_thread(self.turn)
                await asyncio.sleep(interval_seconds)
        finally:
            log.info("anchors.stopped")

    def turn(self) -> None:
        """Compare the chain with the anchors there are; then write its end, if it is new and nothing was found."""
        try:
            with unit() as work:
                head, now = audit.head(work.session), clock.now(work.session)
                faults = compare(work.session, self.read())
        except sql.SQLAlchemyError as error:
            log.warning("anchors.unread", exc_info=error)
            return
        for fault, detail in faults:
            log.error("audit.fault", fault=fault, detail=detail)
            self._fault(fault)
        if head.seq > self._written and not faults:
            self._write(Anchor(head.seq, head.hash, now.isoformat()))

    def read(self) -> list[Anchor]:
        """Return the last anchors of all places that can be read."""
        found: list[Anchor] = []
        for sink in self._sinks:
            try:
                found += sink.read()
            except (OSError, StoreError) as error:
                log.warning("anchors.unread", place=sink.name, detail=str(error))
                self._fault("unread")
        return found

    def _write(self, anchor: Anchor) -> None:
        for sink in self._sinks:
            try:
                sink.write(anchor)
            except (OSError, StoreError) as error:
                log.error("anchors.unwritten", place=sink.name, detail=str(error))  # noqa: TRY400 - the place is away
                self._fault("unwritten")
            else:
                self._written = anchor.seq


def compare(session: Any, anchors: Iterable[Anchor]) -> list[tuple[str, str]]:
    """Return what is wrong with the chain by these anchors: it ends before one, or has another link in its place."""
    known = {each.seq: each for each in anchors}
    query = select(AuditSealRow.seq, AuditSealRow.hash).where(AuditSealRow.seq.in_(sorted(known)))
    found = dict(session.execute(query).all())
    head = audit.head(session).seq
    faults = []
    for seq, anchor in sorted(known.items()):
        if seq not in found:
            faults.append(
                ("truncated", f"the chain ends at link {head}; link {seq} was written at {anchor.at}")
            )
        elif found[seq] != anchor.hash:
            faults.append(("rewritten", f"link {seq} is not the one that was written down at {anchor.at}"))
    return faults


def _parsed(lines: Iterable[str]) -> list[Anchor]:
    found = []
    for line in lines:
        try:
            data = json.loads(line)
            found.append(Anchor(int(data["seq"]), str(data["hash"]), str(data["at"])))
        except (ValueError, TypeError, KeyError):
            continue
    return found
