"""Calls of Airflow's Task Execution API that write: their names for people, and the limits of what they carry.

The worker checks a write against these limits where a task makes it, so that the task gets the error. The gateway checks
it again, because a worker is not trusted.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from airbridge.core import json_text
from airbridge.core.json_text import KIB, Bounds
from airbridge.core.violations import Place, Violation

# A request to the gateway has at most 64 MiB. The body of a call travels in it as a string of JSON, in which every quote
# and backslash takes twice the room: so half of it is for the largest body, less what else is in the request.
XCOM_BODY: Final = Bounds(31 * 1024 * KIB)
RENDERED_FIELDS_BODY: Final = Bounds(4096 * KIB)
OTHER_BODY: Final = Bounds(1024 * KIB)

# Characters of Airflow's columns ``xcom.key`` and ``variable.key``.
XCOM_KEY: Final = 512
VARIABLE_KEY: Final = 250

_WITHOUT_BODY: Final = frozenset({"DELETE", "GET", "HEAD"})
_LONGEST_NAME: Final = 100


def describe(method: str, path: str) -> str:
    """Return the name of a call for people: ``XCom 'total'``. `path` is relative to the API's root."""
    kind, *names = [_shorten(unquote(part)) for part in path.strip("/").split("/")]
    match kind, names:
        case "xcoms", [_, _, _, *key]:
            return f"XCom {'/'.join(key)!r}"
        case "variables", [*key]:
            return f"variable {'/'.join(key)!r}"
        case "task-instances", [_, "rtif"]:
            return "the rendered fields"
        case "task-instances", [_, "skip-downstream"]:
            return "the skipping of downstream tasks"
        case "task-instances", [_, "state"]:
            return "the task's state"
        case "dag-runs", [dag_id, run_id, *_]:
            return f"run {run_id!r} of DAG {dag_id!r}"
    return f"{method} {_shorten(path)}"


def check(method: str, path: str, body: str | None) -> None:
    """Check a call against the limits of the control plane. Raises `Violation`. `path` is decoded."""
    if method in {"GET", "HEAD"}:
        return
    place = Place(describe(method, path))
    json_text.check_text(path, place)
    kind, *names = path.lstrip("/").split("/")
    key = "/".join(names[3:] if kind == "xcoms" else names)
    longest = {"xcoms": XCOM_KEY, "variables": VARIABLE_KEY}.get(kind)
    if longest is not None and not 0 < len(key) <= longest:
        raise Violation(place, f"a key of {len(key)} characters", f"1 to {longest}")
    if longest is not None and key.endswith("/"):
        # Airflow's routes answer such a path with a redirection.
        raise Violation(place, "a key that ends in a slash", "any other end")
    if method not in _WITHOUT_BODY and not (body is None and _clears(kind, names)):
        json_text.read(body or "", place, _bounds(kind, names))


def _clears(kind: str, names: list[str]) -> bool:
    """Return whether a call clears a DAG run: the one of the Task SDK's POSTs that has no body."""
    return kind == "dag-runs" and len(names) == 3 and names[2] == "clear"


def _bounds(kind: str, names: list[str]) -> Bounds:
    if kind == "xcoms":
        return XCOM_BODY
    return RENDERED_FIELDS_BODY if names[-1:] == ["rtif"] else OTHER_BODY


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
