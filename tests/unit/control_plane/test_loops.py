"""Supervision of the gateway's loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from airbridge.control_plane.gateway.audit.denials import Denial, DenialLog, Rates
from airbridge.control_plane.gateway.loops import supervise


class Flaky:
    """Loop that fails at its first two runs, and then runs until it is cancelled."""

    def __init__(self, failure: Callable[[], BaseException]) -> None:
        self.runs = 0
        self.lasting = asyncio.Event()
        self._failure = failure

    async def run(self) -> None:
        self.runs += 1
        if self.runs < 3:
            raise self._failure()
        self.lasting.set()
        await asyncio.sleep(3600)


@pytest.mark.parametrize("failure", [ValueError, OSError, asyncio.CancelledError])
def test_failed_loop_is_restarted(failure: Callable[[], BaseException]) -> None:
    """Each failure is logged with the loop's name, and the loop runs again; so is a cancellation from within."""

    async def scene() -> Flaky:
        loop = Flaky(failure)
        task = asyncio.create_task(supervise("flaky", loop.run, 0.0))
        await asyncio.wait_for(loop.lasting.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return loop

    with capture_logs() as logged:
        assert asyncio.run(scene()).runs == 3
    assert [("loop.failed", "flaky", "error")] * 2 == [
        (each["event"], each["loop"], each["log_level"]) for each in logged
    ]


def test_restart_waits() -> None:
    """The pause keeps a loop that fails at once from filling the log."""

    async def scene() -> int:
        loop = Flaky(ValueError)
        task = asyncio.create_task(supervise("flaky", loop.run, 3600.0))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return loop.runs

    assert asyncio.run(scene()) == 1


def test_returned_loop_is_not_restarted() -> None:
    """A loop with nothing to do may return."""

    async def idle() -> None:
        runs.append(1)

    runs: list[int] = []
    asyncio.run(asyncio.wait_for(supervise("idle", idle, 0.0), 5))
    assert runs == [1]


def test_restarted_denials_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Denials that a failed run left are written by the next one, without a new denial."""
    from airbridge.control_plane.gateway.audit import denials

    written: list[int] = []

    def write(rows: list[Denial], _: object) -> None:
        written.append(len(rows))
        if len(written) == 1:
            raise RuntimeError("no thread")

    async def scene() -> None:
        log = DenialLog(Rates())
        monkeypatch.setattr(denials, "BATCH", 1)
        task = asyncio.create_task(supervise("denials", log.run, 0.0))
        denial = Denial("request.refused", "operator:ann", "127.0.0.1:1", None, None, {})
        futures = [log.submit(denial), log.submit(denial)]
        for each in futures:
            assert each is not None
            await asyncio.wait_for(each, 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await log.close()

    monkeypatch.setattr(denials, "write_rows", write)
    asyncio.run(scene())
    assert written == [1, 1]
