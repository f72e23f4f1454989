"""Log objects that a worker may write, list and delete: those of work items that it was granted, under the epoch of the grant.

A role in AWS can be held to a prefix of its region's bucket, and no further; the gateway has the grants.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any, Final
from uuid import UUID

from sqlalchemy import select

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth.authentication import Caller, check_revocation
from airbridge.control_plane.gateway.database import unit
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger.models import EventRow, WorkItemRow

# ``logs/<log path>/<start>-<epoch>-<item>/<file>``, see docs/reference/interfaces.md, "Logs".
_OBJECT: Final = re.compile(
    r"(?P<segment>logs/(?P<path>.+)/[0-9]{8}T[0-9]{6}\.[0-9]{6}Z-(?P<epoch>[0-9]{1,9})-(?P<item>[0-9a-f-]{36}))"
    r"/(?:full|[0-9]{8})\.log"
)
MAX_CACHED: Final = 20_000


class LogAccess:
    """Checks keys against the ledger, and remembers what it has allowed. Safe between threads."""

    def __init__(self) -> None:
        self._allowed: OrderedDict[tuple[str, str], None] = OrderedDict()

    def check(self, caller: Caller, *keys: str) -> None:
        """Raise `Refused` unless the caller may use these objects of its region's log bucket."""
        segments = {_parse(key) for key in keys}
        with unit() as work:
            check_revocation(work.session, caller)
            for segment in segments:
                known = (caller.name.uri, segment.group("segment"))
                if known not in self._allowed:
                    _look_up(work.session, caller, segment)
                    self._remember(known)

    def _remember(self, known: tuple[str, str]) -> None:
        self._allowed[known] = None
        while len(self._allowed) > MAX_CACHED:
            try:
                self._allowed.popitem(last=False)
            except KeyError:  # another thread has
                return


def _parse(key: str) -> re.Match[str]:
    found = _OBJECT.fullmatch(key)
    if found is None or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise Refused(400, RefusalReason.MALFORMED, f"{key[:200]!r} is not the name of a task's log")
    return found


def _look_up(session: Any, caller: Caller, segment: re.Match[str]) -> None:
    try:
        item_id = str(UUID(segment.group("item")))
    except ValueError as error:
        raise Refused(400, RefusalReason.MALFORMED, "the log's work item is no UUID") from error
    epoch = int(segment.group("epoch"))
    granted = select(EventRow.id).where(
        EventRow.item_id == item_id,
        EventRow.event == "claim.granted",
        EventRow.epoch == epoch,
        EventRow.worker_id == caller.name.worker,
    )
    workload = session.execute(select(WorkItemRow.workload).where(WorkItemRow.id == item_id)).scalar()
    path = None if workload is None else str(workload["log_path"]).strip("/")
    if path != segment.group("path") or session.execute(granted.limit(1)).first() is None:
        raise Refused(
            403,
            RefusalReason.NOT_HOLDER,
            f"work item {item_id} was not granted to this worker under epoch {epoch}, or its log has another path",
            rule=f"holder of work item {item_id}",
        )
