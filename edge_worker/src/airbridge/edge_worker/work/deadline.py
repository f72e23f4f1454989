"""`stop_after`: work that must never run twice is stopped here when the control plane has been out of reach that long.

The control plane gives an attempt up at `lost_after`, and another worker may then run the task. So a task with a
`stop_after` is stopped early enough before that to end by itself, and killed if it has not ended shortly before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from airbridge.core.protocol import DisconnectPolicy, RefusalReason
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.work.attempts import Attempt, Attempts, Stop

log = structlog.get_logger(__name__)

CHECK_SECONDS = 0.5
MARGIN_SHARE = 0.1
# A task is killed this long (or this share of `lost_after`, if that is less) before `lost_after`; stopped
# twice as long before.
MARGIN_SECONDS = 10.0
# Shares of the silence that a policy allows, by which the next heartbeat is sent, and given up if it is not answered.
SENT_BY = 0.5
ANSWERED_BY = 0.75


class Deadline:
    """Stops each running task whose `stop_after` has passed since the last contact about its lease."""

    def __init__(
        self,
        attempts: Attempts,
        clock: Clock,
        stop: Callable[[Attempt, Stop], None],
        kill: Callable[[Attempt], None],
    ) -> None:
        self._attempts = attempts
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
        for attempt in self._attempts.running:
            allowed = stop_after(attempt.grant.disconnect)
            if allowed is None or attempt.contact_at is None:
                continue
            silent = now - attempt.contact_at
            if silent > allowed:
                self._stop_once(attempt, silent)
            if silent > _kill_after(attempt.grant.disconnect):
                self._kill(attempt)

    def _stop_once(self, attempt: Attempt, silent: float) -> None:
        if attempt.stop or attempt.finished:
            return
        stop_after = attempt.grant.disconnect.stop_after
        detail = f"no contact with the control plane for {silent:.0f} s; its stop_after is {stop_after:g} s"
        log.error("task.stop_after", item_id=attempt.key[0], epoch=attempt.grant.epoch, detail=detail)
        self._stop(attempt, Stop(RefusalReason.LOST, detail, report=True))


def stop_after(policy: DisconnectPolicy) -> float | None:
    """Return after how many seconds out of contact a task is stopped; None if never."""
    if policy.stop_after is None:
        return None
    # A `stop_after` close to `lost_after` would leave the task no time to end by itself.
    return min(policy.stop_after, policy.lost_after - 2 * _margin(policy))


def start_before(policy: DisconnectPolicy) -> float:
    """Return for how many seconds out of contact a claimed task may still start.

    Later the control plane has given it up, or the worker would stop it at once. It starts when there is contact again,
    unless the control plane has cancelled it.
    """
    allowed = stop_after(policy)
    return policy.lost_after if allowed is None else allowed


def contact_due(attempt: Attempt, share: float = SENT_BY) -> float | None:
    """Return the time (`Clock.elapsed`) of a share of the silence that an attempt's policy allows; None if it needs no contact any more.

    A heartbeat is sent by `SENT_BY`, and given up at `ANSWERED_BY`, so that one that is lost ends nothing.
    """
    if attempt.contact_at is None or attempt.given_up or attempt.stop or attempt.fenced or not attempt.leased:
        return None
    return attempt.contact_at + start_before(attempt.grant.disconnect) * share


def _kill_after(policy: DisconnectPolicy) -> float:
    return policy.lost_after - _margin(policy)


def _margin(policy: DisconnectPolicy) -> float:
    return min(MARGIN_SECONDS, policy.lost_after * MARGIN_SHARE)
