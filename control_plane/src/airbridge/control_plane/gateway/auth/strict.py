"""Bodies that may leave a strict region: states, times, sizes, digests and names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from airbridge.control_plane.gateway.triggers.events import Fired
from airbridge.control_plane.gateway.validation.bodies import Route
from airbridge.core.residency.settings import WITHHELD


def why_not(route: Route, value: Any) -> str | None:
    """Return why a checked body of a task's call may not leave a strict region; None if it may. It quotes nothing."""
    check = _CHECKS.get(route)
    why = check(value) if check else None
    return why and f"{why}; the region's residency is strict"


def why_no_event(fired: Fired) -> str | None:
    """Return why an event of a trigger may not leave a strict region; None if it has a state at most."""
    carried = "the payload" if fired.payload else "the XComs" if fired.xcoms else None
    return carried and f"{carried} of a trigger's event; the region's residency is strict"


def _state(value: Any) -> str | None:
    if value["state"] == "deferred":
        return "a deferral: its trigger, with its kwargs, would be kept in the control plane. Set deferrable=False"
    if value.get("rendered_map_index") is not None:
        return "a rendered map index"
    if any(event.get("extra") for event in value.get("outlet_events") or ()):
        return "the extra of an asset's event"
    return None


def _rendered_fields(value: Any) -> str | None:
    return None if all(each == WITHHELD for each in value.values()) else "rendered fields"


def _variable(_value: Any) -> str:
    return "a variable's value"


def _dag_run(value: Any) -> str | None:
    return "the conf of a run" if value.get("conf") else None


# XComs have rules of their own, by size: none in a strict region may be inline.
_CHECKS: Final[Mapping[Route, Callable[[Any], str | None]]] = {
    Route.STATE: _state,
    Route.RENDERED_FIELDS: _rendered_fields,
    Route.VARIABLE: _variable,
    Route.DAG_RUN: _dag_run,
}
