"""XComs that tasks and their triggers write and tasks read, as events with their sizes: what moved, and between which regions.

A value that lies in the database crosses with its call. One in a region's bucket crosses only when a task of another region fetches it;
a task of the same region reads it there, which moves nothing.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import UUID

from sqlalchemy import select

from airbridge.control_plane._airflow import Answer
from airbridge.control_plane.gateway.auth.residency import StoredRead
from airbridge.control_plane.gateway.auth.task_permissions import Call
from airbridge.control_plane.gateway.triggers.events import Fired
from airbridge.core.residency import xcoms
from airbridge.core.residency.xcoms import StoredXCom
from airbridge.core.violations import Violation
from airbridge.executor.ledger import events
from airbridge.executor.ledger.models import EventRow, WorkItemRow
from airbridge.executor.ledger.sharing.usage import XCOM_READ, XCOM_WRITTEN

# The endings are those of reads of a mapped task: one of its XComs by position, or some of them.
_PATH: Final = re.compile(
    r"xcoms/(?P<dag>[^/]+)/(?P<run>[^/]+)/(?P<task>[^/]+)/(?P<key>.+?)(?:/item/(?P<position>-?\d{1,9})|/(?P<slice>slice))?",
    re.DOTALL,
)
_WHOLE: Final = re.compile(r"-?\d{1,9}")
_INDEX: Final = re.compile(r"(?:^|&)map_index=(-?\d{1,9})(?:&|$)")


def record(session: Any, row: WorkItemRow, call: Call, answer: Answer, actor: str) -> int:
    """Write the events of the XComs that an applied call moved, if it did, and return their bytes."""
    if answer.status >= 300:
        return 0
    if isinstance(call.fired, Fired):
        written = (call.fired.xcoms or {}).items()
        return sum(_written(session, row, key, xcoms.text_of(value), actor) for key, value in written)
    if call.stored is not None:
        return _fetched(session, row, call.stored, actor)
    match = _PATH.fullmatch(call.path)
    if match is None or call.method not in {"GET", "POST"}:
        return 0
    if call.method == "POST":
        return _written(session, row, match["key"], call.body or "", actor)
    return _read(session, row, match, call.query, body=answer.body or "", actor=actor)


def _written(session: Any, row: WorkItemRow, key: str, body: str, actor: str) -> int:
    stored = _reference(body)
    size = len(body.encode()) if stored is None else stored.size
    where: dict[str, Any] = (
        {} if stored is None else {"stored": stored.region, "sha256": stored.object.sha256}
    )
    event = events.record(session, XCOM_WRITTEN, actor, row=row, key=key[:250], bytes=size, **where)
    event.moved_bytes = size
    return size


def _read(session: Any, row: WorkItemRow, source: re.Match[str], query: str, *, body: str, actor: str) -> int:
    stored = _reference(body)
    if stored is not None and stored.region != row.region:
        # The value itself is fetched by a call of its own.
        return 0
    size = len(body.encode()) if stored is None else stored.size
    where: dict[str, Any] = {} if stored is None else {"stored": stored.region}
    event = events.record(
        session,
        XCOM_READ,
        actor,
        row=row,
        key=source["key"][:250],
        bytes=size,
        of_dag=source["dag"],
        of_run=source["run"],
        of_task=source["task"],
        **_which(source, query),
        **where,
    )
    moved = size if stored is None else 0
    event.moved_bytes = moved
    return moved


def _which(source: re.Match[str], query: str) -> dict[str, Any]:
    """Return which XComs of a task were read: a map index, or positions among those that there are, see `read_model.history.run`."""
    if source["position"]:
        return {"of_position": int(source["position"])}
    if source["slice"]:
        given = parse_qs(query)
        return {"of_slice": [_whole(given.get(name)) for name in ("start", "stop", "step")]}
    return {"of_index": _index(query)}


def _whole(values: list[str] | None) -> int | None:
    return int(values[0]) if values and _WHOLE.fullmatch(values[0]) else None


def _fetched(session: Any, row: WorkItemRow, read: StoredRead, actor: str) -> int:
    """Note the read of a value in another region's bucket, by what its writer reported."""
    name = read.object
    writer, found = None, []
    if _is_uuid(name.item_id):
        writer = session.get(WorkItemRow, name.item_id)
        written = select(EventRow.detail, EventRow.moved_bytes).where(
            EventRow.item_id == name.item_id, EventRow.event == XCOM_WRITTEN, EventRow.source == "control"
        )
        found = [each for each in session.execute(written) if each.detail.get("sha256") == name.sha256]
    size = int(found[0].moved_bytes or 0) if found else 0
    of: dict[str, Any] = {}
    if writer is not None:
        of = {
            "of_dag": writer.dag_id,
            "of_run": writer.run_id,
            "of_task": writer.task_id,
            "of_index": writer.map_index,
        }
    crosses = read.region != row.region
    event = events.record(
        session,
        XCOM_READ,
        actor,
        row=row,
        key=found[0].detail.get("key", "") if found else "",
        bytes=size,
        stored=read.region,
        **of,
    )
    moved = size if crosses else 0
    event.moved_bytes = moved
    return moved


def _reference(body: str) -> StoredXCom | None:
    """Return the reference that a body of an XCom is, or that an answer with one has."""
    if xcoms.CLASS not in body:
        return None
    try:
        value = json.loads(body)
    except ValueError:
        return None
    if isinstance(value, dict) and not xcoms.is_reference(value):
        value = value.get("value")
    try:
        return StoredXCom.decode(value) if isinstance(value, dict) and xcoms.is_reference(value) else None
    except Violation:
        return None


def _is_uuid(text: str) -> bool:
    """Return whether the database takes a text for an id."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _index(query: str) -> int:
    found = _INDEX.search(query)
    return int(found[1]) if found else -1
