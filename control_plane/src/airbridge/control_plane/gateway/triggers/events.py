"""Events of triggers: what a worker reports, checked before anything of it reaches Airflow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from airbridge.control_plane.gateway.triggers import _airflow
from airbridge.control_plane.gateway.validation import inert
from airbridge.core import json_text, task_calls
from airbridge.core.violations import Place, Violation

_STATES: Final = frozenset({"success", "failed", "skipped"})
_LINES: Final = 200
_PLACE: Final = Place("trigger")


@dataclass(frozen=True, slots=True)
class Fired:
    """Event of a trigger. With a `state` it ends its task without resuming it; `payload` is encoded kwargs."""

    payload: Any
    state: str | None = None
    xcoms: dict[str, Any] | None = None

    @property
    def outcome(self) -> str:
        """Words for the ledger's row."""
        return "fired" if self.state is None else f"fired: {self.state}"

    def apply(self, session: Any, trigger_id: int) -> None:
        """Apply it to the tasks that are deferred on the trigger."""
        _airflow.submit_event(session, trigger_id, self.payload, self.state, self.xcoms)


@dataclass(frozen=True, slots=True)
class Failed:
    """End of a trigger without an event."""

    traceback: tuple[str, ...] | None = None

    @property
    def outcome(self) -> str:
        """Words for the ledger's row."""
        return "failed"

    def apply(self, session: Any, trigger_id: int) -> None:
        """Fail the tasks that are deferred on the trigger."""
        _airflow.submit_failure(session, trigger_id, self.traceback)


Event = Fired | Failed


def read(text: str | None) -> Event:
    """Return the event in a body: ``{"event": {...}}`` or ``{"failure": [lines] or null}``. Raises `Violation`."""
    value = json_text.read(text or "", _PLACE, task_calls.OTHER_BODY)
    match value:
        case {"event": dict() as event, **rest} if not rest:
            return _fired(event)
        case {"failure": None | list() as lines, **rest} if not rest:
            return _failed(lines)
    raise Violation(_PLACE, "neither an event nor a failure", "one of both")


def _fired(event: dict[str, Any]) -> Fired:
    if event.keys() - {"payload", "state", "xcoms"}:
        raise Violation(_PLACE, f"the keys {sorted(event)}"[:200], "payload, state and xcoms")
    payload, state, xcoms = event.get("payload", {}), event.get("state"), event.get("xcoms")
    inert.check_kwargs(payload, _PLACE.key("payload"))
    if state is not None and (not isinstance(state, str) or state not in _STATES):
        raise Violation(_PLACE.key("state"), f"{state!r}"[:64], f"null, {', '.join(sorted(_STATES))}")
    if xcoms is not None:
        _check_xcoms(xcoms)
    return Fired(payload, state, xcoms)


def _check_xcoms(xcoms: Any) -> None:
    place = _PLACE.key("xcoms")
    if not isinstance(xcoms, dict):
        raise Violation(place, f"a {type(xcoms).__name__}", "an object of XComs by key")
    for key, value in xcoms.items():
        if not 0 < len(key) <= task_calls.XCOM_KEY:
            raise Violation(place, f"a key of {len(key)} characters", f"1 to {task_calls.XCOM_KEY}")
        inert.check_xcom(value, place.key(key))


def _failed(lines: list[Any] | None) -> Failed:
    if lines is None:
        return Failed()
    if len(lines) > _LINES or not all(isinstance(each, str) for each in lines):
        raise Violation(_PLACE.key("failure"), f"{len(lines)} members", f"up to {_LINES} lines of text")
    return Failed(tuple(lines))
