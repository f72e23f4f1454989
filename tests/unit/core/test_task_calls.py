"""Names and limits of a task's writing calls."""

from __future__ import annotations

import json

import pytest

from airbridge.control_plane.gateway.validation.bodies import BOUNDS, Route
from airbridge.core import task_calls
from airbridge.core.violations import Violation


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "xcoms/d/r/t/total", "XCom 'total'"),
        ("POST", "xcoms/d/r/t/a%2Fb/c", "XCom 'a/b/c'"),
        ("POST", f"xcoms/d/r/t/{'k' * 200}", f"XCom '{'k' * 100}...'"),
        ("PUT", "variables/team/colour", "variable 'team/colour'"),
        ("PUT", "task-instances/1/rtif", "the rendered fields"),
        ("PATCH", "task-instances/1/skip-downstream", "the skipping of downstream tasks"),
        ("PATCH", "task-instances/1/state", "the task's state"),
        ("POST", "dag-runs/d/r", "run 'r' of DAG 'd'"),
        ("POST", "dag-runs/d/r/clear", "run 'r' of DAG 'd'"),
        ("POST", "elsewhere/x", "POST elsewhere/x"),
    ],
)
def test_call_has_a_name(method: str, path: str, name: str) -> None:
    """A refusal names the write in its author's words."""
    assert task_calls.describe(method, path) == name


@pytest.mark.parametrize(
    ("path", "body", "found"),
    [
        ("xcoms/d/r/t/", "1", "a key of 0 characters"),
        ("xcoms/d/r/t/" + "k" * 513, "1", "a key of 513 characters"),
        ("xcoms/d/r/t/ends/", "1", "a key that ends in a slash"),
        ("xcoms/d/r/t/a\x00b", "1", "a NUL character"),
        ("xcoms/d/r/t/k", '"a\\u0000b"', "a NUL character"),
        ("xcoms/d/r/t/k", '"\\ud800"', "a lone surrogate"),
        ("xcoms/d/r/t/k", None, "not JSON"),
        ("xcoms/d/r/t/k", "NaN", "the number NaN"),
        ("dag-runs/d/r", None, "not JSON"),
        ("dag-runs/d/clear", None, "not JSON"),
        ("dag-runs/d/r/clear", "NaN", "the number NaN"),
        ("variables/" + "v" * 251, '{"val": "x"}', "a key of 251 characters"),
        ("dag-runs/d/r", json.dumps({"conf": {"k": "x" * 1024 * 1024}}), "characters of JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused(path: str, body: str | None, found: str) -> None:
    """Keys, characters, numbers and sizes, each with what would be right."""
    with pytest.raises(Violation, match=found) as refused:
        task_calls.check("POST", path, body)
    assert "allowed: " in str(refused.value)


@pytest.mark.parametrize("key", ["k", "k" * 512, "a/b", "ä ?#%", ".."])
def test_storable_write_passes(key: str) -> None:
    """The longest key, and any character but NUL."""
    task_calls.check("POST", f"xcoms/d/r/t/{key}", '{"a": ["\\u00e4", 1.5, null]}')
    task_calls.check("DELETE", f"xcoms/d/r/t/{key}", None)


def test_clearing_a_run_has_no_body() -> None:
    """The Task SDK sends none with it."""
    task_calls.check("POST", "dag-runs/d/r/clear", None)


def test_largest_body_fits_a_request() -> None:
    """Were every character of the largest body one that takes twice the room, a request would still hold it."""
    from airbridge.control_plane.gateway.api.edge import EXCHANGE_BODY

    largest = max(bounds.size for bounds in BOUNDS.values())
    assert largest == BOUNDS[Route.XCOM].size == task_calls.XCOM_BODY.size
    assert 2 * largest + 1024 * 1024 <= EXCHANGE_BODY.size
