"""Answers kept for a moment."""

from __future__ import annotations

import threading

from airbridge.control_plane.dashboard.response_cache import ResponseCache


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_value_is_cached_until_expiry() -> None:
    """Within its time an answer is not computed again; after it, it is."""
    clock, calls = Clock(), []
    memo = ResponseCache[int](2.0, monotonic=clock)
    assert [memo.get("a", lambda: calls.append(1) or len(calls)) for _ in range(3)] == [1, 1, 1]
    assert memo.peek("a") == 1
    clock.now = 2.0
    assert memo.peek("a") is None
    assert memo.get("a", lambda: calls.append(1) or len(calls)) == 2


def test_many_askers_cost_one_computation() -> None:
    """A request that arrives while the answer is being computed waits for that answer."""
    memo, started, go, calls = ResponseCache[int](60.0), threading.Event(), threading.Event(), []

    def slow() -> int:
        calls.append(1)
        started.set()
        go.wait(10)
        return 7

    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(memo.get("a", slow))) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert (answers, len(calls)) == ([7] * 8, 1)


def test_an_error_is_not_kept() -> None:
    """A computation that failed is run again."""
    memo = ResponseCache[int](60.0)

    def fail() -> int:
        raise LookupError

    for _ in range(2):
        try:
            memo.get("a", fail)
        except LookupError:
            continue
        raise AssertionError("the error was swallowed")
    assert memo.get("a", lambda: 1) == 1


def test_cache_size_is_bounded() -> None:
    """Old keys are evicted at the size limit; clearing removes all."""
    clock = Clock()
    memo = ResponseCache[int](10.0, size=8, monotonic=clock)
    for number in range(100):
        clock.now += 0.01
        memo.get(number, lambda number=number: number)  # type: ignore[misc]
    assert sum(memo.peek(number) is not None for number in range(100)) <= 8
    assert memo.peek(99) == 99
    memo.clear()
    assert memo.peek(99) is None
