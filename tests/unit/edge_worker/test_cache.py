"""The cache of reads: its entries in a cut, and their limits."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.core.protocol import Grant
from airbridge.edge_worker.proxy.protocol import Call, Reply
from airbridge.edge_worker.proxy.read_cache import ReadCache


class FakeClock:
    def __init__(self) -> None:
        self.time = 0.0

    def elapsed(self) -> float:
        return self.time

    def now(self) -> datetime:
        return datetime(2025, 1, 1, tzinfo=UTC)


def holder(dag: str = "d", run: str = "r", task: str = "t") -> Grant:
    return grant().model_copy(
        update={
            "ti": {"dag_id": dag, "run_id": run, "task_id": task},
            "ti_context": {"upstream_map_indexes": {"up": None}},
        }
    )


def get(path: str, query: str = "") -> Call:
    return Call(7, "GET", path, query)


def ok(value: object) -> Reply:
    return Reply(7, 200, {"content-type": "application/json"}, json.dumps(value))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def cache(clock: FakeClock) -> ReadCache:
    return ReadCache(clock, ttl=60.0)


@pytest.mark.parametrize("path", ["variables/a", "connections/a", "xcoms/d/r/sideways/k"])
def test_what_may_change_expires(cache: ReadCache, clock: FakeClock, path: str) -> None:
    """Variables, connections, and XComs of tasks that may still run are served up to an age."""
    cache.answered(holder(), get(path), ok("x"))
    clock.time = 59.0
    assert cache.find(holder(), get(path)) == ok("x")
    clock.time = 61.0
    assert cache.find(holder(), get(path)) is None


def test_upstream_xcoms_do_not_expire(cache: ReadCache, clock: FakeClock) -> None:
    """A task directly upstream had finished: what it pushed stays what it is."""
    cache.answered(holder(), get("xcoms/d/r/up/k", "map_index=2"), ok("x"))
    clock.time = 1e6
    assert cache.find(holder(), get("xcoms/d/r/up/k", "map_index=2")) == ok("x")
    assert cache.find(holder(), get("xcoms/d/r/up/k")) is None


def test_cache_is_separate_per_dag(cache: ReadCache) -> None:
    """Connections are kept per DAG and XComs per run, so that the control plane's policy decides on each."""
    cache.answered(holder(), get("connections/a"), ok("secret"))
    cache.answered(holder(), get("xcoms/d/r/up/k"), ok("x"))
    assert cache.find(holder(dag="e"), get("connections/a")) is None
    assert cache.find(holder(run="s"), get("xcoms/d/r/up/k")) is None
    assert cache.find(holder(task="u"), get("connections/a")) == ok("secret")


@pytest.mark.parametrize(
    "path",
    [
        "task-instances/count",
        "dag-runs/d/r/state",
        "xcoms/d/other_run/up/k",
        "xcoms/e/r/up/k",
        "variables",
        "",
    ],
)
def test_other_reads_are_never_kept(cache: ReadCache, path: str) -> None:
    """Counts, states, and what belongs to other runs may change at any time."""
    cache.answered(holder(), get(path), ok("x"))
    assert cache.find(holder(), get(path)) is None


def test_refusal_drops_cached_value(cache: ReadCache) -> None:
    """A refusal is not cached, and drops the value from before: a deleted variable is not served."""
    cache.answered(holder(), get("variables/a"), ok("x"))
    cache.answered(holder(), get("variables/a"), Reply(7, 404))
    assert cache.find(holder(), get("variables/a")) is None


def test_a_task_reads_what_it_wrote(cache: ReadCache) -> None:
    """Own XComs and variables are served as Airflow would answer."""
    cache.written(holder(), Call(1, "POST", "xcoms/d/r/t/k", "mapped_length=2", "[1, 2]"))
    cache.written(holder(), Call(1, "PUT", "variables/v", "", '{"val": "x", "description": null}'))
    found = [cache.find(holder(), get(path)) for path in ("xcoms/d/r/t/k", "variables/v")]
    assert [json.loads(reply.body or "") for reply in found if reply] == [
        {"key": "k", "value": [1, 2]},
        {"key": "v", "value": "x"},
    ]


def test_write_drops_derived_values(cache: ReadCache) -> None:
    """Items and slices of an XCom that was pushed again, and deleted values, are not served."""
    item = get("xcoms/d/r/t/k/item/0")
    cache.answered(holder(), item, ok("old"))
    cache.written(holder(), Call(1, "POST", "xcoms/d/r/t/k", "", '"new"'))
    assert cache.find(holder(), item) is None
    cache.written(holder(), Call(1, "DELETE", "xcoms/d/r/t/k"))
    assert cache.find(holder(), get("xcoms/d/r/t/k")) is None


def test_the_cache_is_bounded(clock: FakeClock) -> None:
    """The least recently used go first; what is larger than the cache is not kept."""
    cache = ReadCache(clock, ttl=60.0, max_bytes=2000)
    for name in ("a", "b", "c"):
        cache.answered(holder(), get(f"variables/{name}"), ok("x" * 500))
    assert (
        cache.find(holder(), get("variables/a")) is not None
        or cache.find(holder(), get("variables/b")) is not None
    )
    cache.answered(holder(), get("variables/huge"), ok("x" * 5000))
    assert cache.find(holder(), get("variables/huge")) is None
    cache.answered(holder(), get("variables/d"), ok("x" * 500))
    assert cache._bytes <= 2000
    assert cache.find(holder(), get("variables/d")) is not None
