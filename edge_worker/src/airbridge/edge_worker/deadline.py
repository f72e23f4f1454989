"""`stop_after`: work that must never run twice is stopped here when the control plane has been out of reach that long.

The control plane gives an attempt up at `lost_after`, and another worker may then run the task. So what has a
`stop_after` is stopped early enough before that to end in peace, and killed if it has not ended shortly before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.holdings import Holding, Holdings, Stop
from airbridge.executor.protocol import DisconnectPolicy, RefusalReason

log = structlog.get_logger(__name__)

CHECK_SECONDS = 0.5
MARGIN_SHARE = 0.1
MARGIN_SECONDS = 10.0
"""A task is killed this long (or this share of `lost_after`, if that is less) before `lost_after`; stopped twice as long before."""


class Deadline:
    """Stops each running task whose `stop_after` has passed since the control plane last knew that we hold it."""

    def __init__(
        self,
        holdings: Holdings,
        clock: Clock,
        stop: Callable[[Holding, Stop], None],
        kill: Callable[[Holding], None],
    ) -> None:
        self._holdings = holdings
        self._clock = clock
        self._stop = stop
        self._kill = kill

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.check()

    def check(self) -> None:
        """Stop what is due, and kill what did not stop."""
        now = self._clock.elapsed()
        for holding in self._holdings.running:
            allowed = stop_after(holding.grant.disconnect)
            if allowed is None or holding.contact_at is None:
                continue
            silent = now - holding.contact_at
            if silent > allowed:
                self._stop_once(holding, silent)
            if silent > _kill_after(holding.grant.disconnect):
                self._kill(holding)

    def _stop_once(self, holding: Holding, silent: float) -> None:
        if holding.stop or holding.finished:
            return
        asked = holding.grant.disconnect.stop_after
        detail = f"no contact with the control plane for {silent:.0f} s; its stop_after is {asked:g} s"
        log.error("task.stop_after", item_id=holding.key[0], epoch=holding.grant.epoch, detail=detail)
        self._stop(holding, Stop(RefusalReason.LOST, detail, report=True))


def stop_after(policy: DisconnectPolicy) -> float | None:
    """Return after how many seconds out of contact a task is stopped; None if never."""
    if policy.stop_after is None:
        return None
    return min(policy.stop_after, policy.lost_after - 2 * _margin(policy))


def start_before(policy: DisconnectPolicy) -> float:
    """Return for how many seconds out of contact a claimed task may still start.

    Later the control plane has given it up, or would have it stopped at once. It starts when there is contact again,
    unless the control plane says otherwise.
    """
    allowed = stop_after(policy)
    return policy.lost_after if allowed is None else allowed


def _kill_after(policy: DisconnectPolicy) -> float:
    return policy.lost_after - _margin(policy)


def _margin(policy: DisconnectPolicy) -> float:
    return min(MARGIN_SECONDS, policy.lost_after * MARGIN_SHARE)
