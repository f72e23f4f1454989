"""Values that a task of a strict region does not report: its supervisor takes them out of each message before it leaves the host.

A trigger's process does so with its event.

The gateway refuses most of what is left, with the reason (see `airbridge.control_plane.gateway.auth.strict`).
"""

from __future__ import annotations

from typing import Any, Final

from airflow.configuration import conf
from airflow.sdk.execution_time.comms import (
    DeferTask,
    PutVariable,
    SetRenderedFields,
    SetXCom,
    SucceedTask,
    TriggerDagRun,
)

from airbridge.core.regions import Residency
from airbridge.core.residency import settings as residency
from airbridge.core.residency import xcoms

_NOTE: Final = {"withheld": residency.WITHHELD}


def enforced() -> bool:
    """Return whether this worker's region is strict."""
    return bool(conf.get(residency.SECTION, "mode", fallback="") == str(Residency.STRICT))


def withhold(msg: Any) -> Any:
    """Return a task's message with a note in place of its values."""
    if getattr(msg, "rendered_map_index", None) is not None:
        msg = msg.model_copy(update={"rendered_map_index": None})
    match msg:
        case SetRenderedFields():
            return _with(msg, rendered_fields=dict.fromkeys(msg.rendered_fields, residency.WITHHELD))
        case SetXCom() if not xcoms.is_reference(msg.value) and msg.key != xcoms.SKIP_KEY:
            return _with(msg, value=residency.WITHHELD)
        case PutVariable():
            return _with(msg, value=residency.WITHHELD, description=None)
        case TriggerDagRun() if msg.conf:
            return _with(msg, conf=_NOTE)
        case DeferTask():
            return _with(msg, trigger_kwargs={}, next_kwargs={})
        case SucceedTask() if msg.outlet_events:
            return _with(msg, outlet_events=[_without_extra(event) for event in msg.outlet_events])
    return msg


def withhold_event(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a trigger's event or failure with a note in place of its values, and without a traceback."""
    if "event" not in body:
        return {"failure": None}
    event = dict(body["event"])
    if event.get("payload"):
        event["payload"] = {"__type": "dict", "__var": {"payload": residency.WITHHELD}}
    if event.get("xcoms"):
        event["xcoms"] = dict.fromkeys(event["xcoms"], residency.WITHHELD)
    return {"event": event}


def _with(msg: Any, **changes: Any) -> Any:
    return msg.model_copy(update=changes)


def _without_extra(event: Any) -> Any:
    if isinstance(event, dict):
        return {**event, "extra": _NOTE} if event.get("extra") else event
    return _with(event, extra=_NOTE) if event.extra else event
