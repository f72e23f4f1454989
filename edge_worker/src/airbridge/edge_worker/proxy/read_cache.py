"""Cache of what tasks read, for the time of a cut. In memory only: connections and variables are secrets.

Connected, every read goes to the control plane, behind the task's own writes. Cut off, these are served:

- what the task itself wrote;
- XComs of its own run from tasks directly upstream (they had finished, or it would not run), whatever their age;
- other XComs of its run, variables and connections, up to an age (`ttl`).

Entries are kept per DAG (variables, connections) or per run (XComs), so that what the control plane let one DAG read
is not shown to another.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from airbridge.core.protocol import Grant
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.proxy.protocol import Call, Reply
from airbridge.edge_worker.proxy.routes import segments

MAX_BYTES: Final = 32 * 1024 * 1024
_OVERHEAD: Final = 200
# The last: where a secret may be read, and not the secret itself.
_EXPIRING: Final = frozenset({"variables", "connections", "regional-secrets"})

Key = tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    status: int
    headers: dict[str, str]
    body: str | None
    stored_at: float
    lasting: bool

    @property
    def size(self) -> int:
        return len(self.body or "") + _OVERHEAD


class ReadCache:
    """Answers to reads, least recently used out first."""

    def __init__(self, clock: Clock, ttl: float, max_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._ttl = ttl
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._bytes = 0

    def find(self, grant: Grant, call: Call) -> Reply | None:
        """Return what may be served to this task in place of Airflow's answer, or None."""
        key = _key(grant, call)
        entry = None if key is None else self._entries.get(key)
        if key is None or entry is None:
            return None
        if not entry.lasting and self._clock.elapsed() - entry.stored_at > self._ttl:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return Reply(call.id, entry.status, entry.headers, entry.body)

    def answered(self, grant: Grant, call: Call, reply: Reply) -> None:
        """Store Airflow's answer to a read, if it may be served again."""
        key = _key(grant, call)
        if key is None:
            return
        if reply.status == 200:
            self._store(key, reply.status, reply.headers, reply.body, lasting=_is_lasting(grant, call))
        elif 400 <= reply.status < 500:
            self._drop(key)

    def written(self, grant: Grant, call: Call) -> None:
        """Store a task's own write, and drop what it replaces."""
        parts = segments(call.path)
        read = Call(id=0, method="GET", path=call.path, query=call.query)
        key = _key(grant, read)
        if key is None:
            return
        self._drop_derived(key)
        body = _body_after(parts, call)
        if body is not None:
            self._store(key, 200, {"content-type": "application/json"}, body, lasting=parts[0] == "xcoms")

    def _store(
        self, key: Key, status: int, headers: dict[str, str], body: str | None, *, lasting: bool
    ) -> None:
        self._drop(key)
        entry = _Entry(status, headers, body, self._clock.elapsed(), lasting)
        if entry.size > self._max_bytes:
            return
        self._entries[key] = entry
        self._bytes += entry.size
        while self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size

    def _drop_derived(self, key: Key) -> None:
        """Drop a value and, for an XCom, the counts, items and slices made from it."""
        *scope, _, path, _ = key
        for other in [*self._entries]:
            *other_scope, _, other_path, _ = other
            if other_scope == scope and (other_path == path or other_path.startswith(f"{path}/")):
                same_value = other_path == path and other[-3] == "GET"
                if not same_value or other == key:
                    self._drop(other)


def _key(grant: Grant, call: Call) -> Key | None:
    """Return (scope..., method, path, query) of a read that may be cached, or None."""
    parts = segments(call.path)
    dag_id, run_id = str(grant.ti.get("dag_id")), str(grant.ti.get("run_id"))
    path = "/".join(part.replace("/", "%2F") for part in parts)
    if parts[0] in _EXPIRING and len(parts) >= 2:
        return (dag_id, call.method, path, "")
    if parts[0] == "xcoms" and len(parts) >= 5 and parts[1:3] == [dag_id, run_id]:
        query = {name: value for name, value in parse_qsl(call.query) if name != "mapped_length"}
        if call.method == "GET" and len(parts) == 5:
            # The default of Airflow's route, so that both forms of the call share an entry.
            query.setdefault("map_index", "-1")
        return (dag_id, run_id, call.method, path, json.dumps(query, sort_keys=True))
    return None


def _is_lasting(grant: Grant, call: Call) -> bool:
    parts = segments(call.path)
    upstream: Any = grant.ti_context.get("upstream_map_indexes") or {}
    return parts[0] == "xcoms" and (parts[3] in upstream or parts[3] == grant.ti.get("task_id"))


def _body_after(parts: list[str], call: Call) -> str | None:
    """Return what a read answers after this write; None if there is nothing to read, or it is not known."""
    try:
        if call.method == "POST" and parts[0] == "xcoms":
            return json.dumps({"key": parts[4], "value": json.loads(call.body or "null")})
        if call.method == "PUT" and parts[0] == "variables":
            return json.dumps({"key": "/".join(parts[1:]), "value": json.loads(call.body or "{}").get("val")})
    except (ValueError, AttributeError):
        return None
    return None
