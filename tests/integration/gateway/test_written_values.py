"""Property: an accepted write is what the next task reads, or the task fails."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.gateway.world import World, finished, record, xcom_path

from airbridge.core import task_calls
from airbridge.core.violations import Violation
from airbridge.executor.ledger.models import Outcome

CHARACTERS = st.characters(codec=None, exclude_categories=())
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=20),
    st.sampled_from(
        ["", "\x00", '"' * 50, "\\" * 50, "ä\N{SNOWMAN}", "\ud800", '{"__type": "set", "__var": []}', "[1, 2"]
    ),
)
KEYS = st.one_of(
    st.text(CHARACTERS, min_size=1, max_size=12),
    st.sampled_from(["", "k" * 512, "k" * 513, "a/b", "ends/", "a?b", "a%2Fb", "..", "new\nline", "\x00"]),
)
# Postgres writes larger floats of a JSONB column as whole numbers, for every executor.
FLOATS = st.one_of(st.floats(-1e15, 1e15), st.sampled_from([float("nan"), float("inf")]))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), FLOATS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(TEXTS, st.sampled_from(["__classname__", "__type", "__var"])), inner, max_size=4
        ),
    ),
    max_leaves=8,
)
SIZES = st.sampled_from([1, 1, 1, 1000, 300_000])


def accepted_body(path: str, value: Any, size: int) -> str | None:
    """Return the body of a write that the worker accepts; None if the task gets an error."""
    try:
        body = json.dumps([value, "x" * size] if size > 1 else value, allow_nan=False)
        task_calls.check("POST", path, body)
    except (ValueError, Violation):
        return None
    return body


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(writes=st.lists(st.tuples(KEYS, VALUES, SIZES), min_size=1, max_size=4))
def test_accepted_write_is_kept(world: World, writes: list[tuple[str, Any, int]]) -> None:
    """For any keys, values and sizes: after a success each accepted XCom is there as it was written."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    accepted: dict[str, str] = {}
    records = []
    for key, value, size in writes:
        path = xcom_path(grant, key)
        body = accepted_body(path, value, size)
        if body is not None:
            accepted[key] = body
            sent = record(grant, len(records) + 1, "POST", quote(path, safe="/:+"))
            records.append(sent.model_copy(update={"body": body}))
    [*_, final] = worker.exchange(*records, finished(grant, len(records) + 1)).results
    row = world.row(item)
    if final.status != 204:
        assert (final.status, world.task(item).state, row.outcome) == (409, "failed", Outcome.FAILED)
        assert "XCom" in (row.detail or "")
        return
    for key, body in accepted.items():
        [read] = worker.exchange(record(grant, 99, "GET", quote(xcom_path(grant, key), safe="/:+"))).results
        assert read.status == 200, (key, read.body)
        assert json.loads(read.body or "")["value"] == json.loads(body)
