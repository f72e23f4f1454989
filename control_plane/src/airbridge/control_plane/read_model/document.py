"""JSON documents of the read model, for the operator API and ``--json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from airbridge.control_plane.read_model import overview, tasks, workers
from airbridge.control_plane.read_model import usage as usage_report
from airbridge.control_plane.read_model.diagnosis import causes
from airbridge.control_plane.read_model.history.timeline import Step
from airbridge.control_plane.read_model.paging import LARGEST, PageRequest
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.read_model.regions import PoolView, RegionView
from airbridge.control_plane.read_model.usage import By

# Workers in trouble in a status document.
TROUBLES = 50


def plain(value: Any) -> Any:
    """Return a value of the read model as JSON types. Times are ISO 8601 in UTC."""
    if is_dataclass(value) and not isinstance(value, type):
        reported = {field.name: plain(getattr(value, field.name)) for field in fields(value)}
        return reported | {name: plain(getattr(value, name)) for name in _COMPUTED.get(type(value), ())}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, Counter | Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(each) for each in value]
    return value


_COMPUTED: Mapping[type, tuple[str, ...]] = {
    PoolView: ("waiting", "alive", "backlog_per_slot"),
    RegionView: (
        "troubled",
        "waiting",
        "running",
        "slots",
        "slots_used",
        "alive",
        "settled",
        "oldest_waiting_since",
    ),
    Step: ("seconds",),
}


def status(session: Any, platform: Platform) -> dict[str, Any]:
    """Return the platform's status: scheduler, gateways, regions, the first `LARGEST` workers, and the first `TROUBLES` in trouble."""
    listed = workers.listing(session, platform, page=PageRequest(1, LARGEST))
    troubled = workers.troubled(session, platform, PageRequest(1, TROUBLES))
    return {
        **plain(overview.take(session, platform)),
        "workers": plain(listed.rows),
        "workers_total": listed.total,
        "workers_troubled": plain(troubled.rows),
        "workers_troubled_total": troubled.total,
    }


def usage(
    session: Any, by: Sequence[str], since: datetime | None = None, until: datetime | None = None
) -> dict[str, Any]:
    """Return what work items used in a period, grouped."""
    found = usage_report.take(session, [By(each) for each in dict.fromkeys(by)], since, until)
    return {
        "since": plain(found.since),
        "until": plain(found.until),
        "by": plain(found.by),
        "lines": [
            {
                **{each.value: getattr(line, each.value) for each in found.by},
                **plain(line.amount),
                "share": line.share,
            }
            for line in found.lines
        ],
        "total": plain(found.total),
    }


def timeline(session: Any, platform: Platform, task: tasks.TaskView) -> dict[str, Any]:
    """Return a task's timeline and the cause."""
    line, cause = causes.of_task(session, platform, task)
    return {
        "task": task.name,
        "dag_id": task.dag_id,
        "run_id": task.run_id,
        "task_id": task.task_id,
        "map_index": task.map_index,
        "state": task.current.state,
        "trace_id": line.trace_id,
        "cause": plain(cause) | {"trouble": cause.trouble},
        "items": plain(line.items),
        "steps": plain(line.steps),
        "skews": plain(line.skews),
        "complete": line.complete,
        "now": plain(line.now),
    }
