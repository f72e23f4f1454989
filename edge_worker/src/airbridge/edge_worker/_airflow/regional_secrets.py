"""Connections and variables from the region's own secrets backend, read by the supervisor once the gateway allows it.

The gateway allows it first, by name: its policy holds for these reads, and its audit trail has them. It never sees a value.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final
from urllib.parse import quote

import httpx
from airflow.configuration import conf
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time.comms import ConnectionResult, ErrorResponse, GetConnection, VariableResult
from airflow.sdk.execution_time.secrets_masker import mask_secret
from airflow.utils.module_loading import import_string

from airbridge.core.residency import settings as residency

PATH: Final = "regional-secrets"

_MISSING: Final = {
    "connections": ErrorType.CONNECTION_NOT_FOUND,
    "variables": ErrorType.VARIABLE_NOT_FOUND,
}

#: Makes a call to the gateway, by method and path.
Ask = Callable[[str, str], httpx.Response]


def configured() -> bool:
    """Return whether tasks of this worker have a backend in their region."""
    return bool(conf.get(residency.SECRETS, "backend", fallback=None))


def look_up(msg: Any, ask: Ask) -> Any | None:
    """Return the answer to a task's `GetConnection` or `GetVariable`; None if the value is the control plane's.

    A secret that is missing is Airflow's error of that name, so that a task's default takes its place; a backend that fails is
    another one, for which no default does. Raises what `ask` raises if the gateway refuses.
    """
    kind, name = ("connections", msg.conn_id) if isinstance(msg, GetConnection) else ("variables", msg.key)
    places = ask("GET", f"{PATH}/{kind}/{quote(name, safe='')}").json()["places"]
    if "region" not in places:
        return None
    try:
        found = _connection(name) if kind == "connections" else _variable(name)
    except Exception as error:  # noqa: BLE001 - a backend may raise anything, and its message may quote a secret
        return _problem(ErrorType.GENERIC_ERROR, kind, name, f"failed with {type(error).__name__}")
    if found is None and "home" not in places:
        why = "has no such secret, and its residency allows no other place"
        return _problem(_MISSING[kind], kind, name, why)
    return found


def _connection(conn_id: str) -> ConnectionResult | None:
    found = _backend().get_connection(conn_id=conn_id)
    if found is None:
        return None
    for secret in (found.password, found.extra, *_texts(_parsed(found.extra))):
        if secret:
            mask_secret(secret)
    fields = {
        "conn_type": found.conn_type,
        "host": found.host,
        "schema": found.schema,
        "login": found.login,
        "password": found.password,
        "port": found.port,
        "extra": found.extra,
    }
    given = {name: value for name, value in fields.items() if value is not None}
    return ConnectionResult(conn_id=conn_id, **given)


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except ValueError:
        return None


def _texts(value: Any) -> Iterator[str]:
    """Yield every text within JSON: Airflow masks those with telling names alone."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _variable(key: str) -> VariableResult | None:
    value = _backend().get_variable(key=key)
    if value is None:
        return None
    # Whatever its name: what lies in a secrets backend is a secret.
    mask_secret(value)
    return VariableResult(key=key, value=value)


@cache
def _backend() -> Any:
    """Return the backend; once a process, whose supervisors end when the options change."""
    kwargs = json.loads(conf.get(residency.SECRETS, "backend_kwargs", fallback="{}"))
    return import_string(conf.get(residency.SECRETS, "backend"))(**kwargs)


def _problem(error: ErrorType, kind: str, name: str, why: str) -> ErrorResponse:
    message = (
        f"{kind[:-1]} {name!r}: the region's secrets backend {conf.get(residency.SECRETS, 'backend')} {why}"
    )
    return ErrorResponse(error=error, detail={"message": message})
