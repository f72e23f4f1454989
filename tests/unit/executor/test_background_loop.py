"""The background loop: turns, pauses, wakes and stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from airbridge.executor.background_loop import BackgroundLoop, Pause, Timer, stop_all

LONG = 30.0


class Turns:
    """Counts turns; each may be waited for."""

    def __init__(self, pause: Pause, work: Callable[[], None] = lambda: None) -> None:
        self.pause, self.work = pause, work
        self.count = 0
        self._turned = threading.Condition()

    def __call__(self) -> Pause:
        with self._turned:
            self.count += 1
            self._turned.notify_all()
        self.work()
        return self.pause

    def reached(self, count: int, seconds: float = 10.0) -> bool:
        with self._turned:
            return self._turned.wait_for(lambda: self.count >= count, seconds)


def hang(until: threading.Event) -> None:
    until.wait(LONG)


def ended(loop: BackgroundLoop) -> bool:
    return f"airbridge-{loop.name}" not in {thread.name for thread in threading.enumerate()}


def test_turns_repeat_until_stopped() -> None:
    """The thread is a daemon named after the loop; once stopped it is gone and turns no more."""
    turns = Turns(Pause(0.0))
    loop = BackgroundLoop("repeat", turns)
    loop.start()
    [thread] = [each for each in threading.enumerate() if each.name == "airbridge-repeat"]
    assert thread.daemon
    assert turns.reached(3)
    loop.stop()
    assert ended(loop)
    before = turns.count
    time.sleep(0.05)
    assert turns.count == before


def test_wake_ends_pause() -> None:
    """A turn follows at once; without a wake the pause is kept."""
    turns = Turns(Pause(LONG))
    loop = BackgroundLoop("wake", turns)
    loop.start()
    assert turns.reached(1)
    assert not turns.reached(2, seconds=0.2)
    loop.wake()
    assert turns.reached(2)
    assert not turns.reached(3, seconds=0.2)
    loop.stop()


def test_wake_during_turn_counts() -> None:
    """Work that arrives while the turn runs is not left for a whole pause."""
    turns = Turns(Pause(LONG))
    loop = BackgroundLoop("during", turns)
    turns.work = lambda: loop.wake() if turns.count == 1 else None
    loop.start()
    assert turns.reached(2)
    loop.stop()


def test_least_pause_is_kept() -> None:
    """A wake does not end the part of a pause that cannot be shortened; a stop does."""
    turns = Turns(Pause.unwakeable(LONG))
    loop = BackgroundLoop("least", turns)
    loop.start()
    assert turns.reached(1)
    loop.wake()
    assert not turns.reached(2, seconds=0.3)
    began = time.monotonic()
    loop.stop()
    assert ended(loop)
    assert time.monotonic() - began < 5


def test_least_pause_counts_towards_pause() -> None:
    """A pause of 0.3 s, of which 0.2 s cannot be shortened, lasts 0.3 s in all, not 0.5 s."""
    turns = Turns(Pause(0.3, least_seconds=0.2))
    loop = BackgroundLoop("towards", turns)
    began = time.monotonic()
    loop.start()
    assert turns.reached(11)
    loop.stop()
    assert 3.0 <= time.monotonic() - began < 4.5


def test_error_does_not_end_loop() -> None:
    """A turn that raises is followed by another, after the pause for errors."""

    def fail() -> None:
        raise ValueError("broken")

    turns = Turns(Pause(LONG), fail)
    loop = BackgroundLoop("error", turns, on_error_seconds=0.01)
    loop.start()
    assert turns.reached(3)
    loop.stop()


def test_pause_after_error_is_not_woken() -> None:
    """Wakes do not turn a failure into a busy loop."""

    def fail() -> None:
        raise ValueError("broken")

    turns = Turns(Pause(0.0), fail)
    loop = BackgroundLoop("error-pause", turns, on_error_seconds=LONG)
    loop.start()
    assert turns.reached(1)
    loop.wake()
    assert not turns.reached(2, seconds=0.3)
    loop.stop()


def test_stop_waits_at_most_timeout() -> None:
    """A turn that hangs delays stop by the timeout at most."""
    free = threading.Event()
    turns = Turns(Pause(0.0), lambda: hang(free))
    loop = BackgroundLoop("hang", turns)
    loop.start()
    assert turns.reached(1)
    began = time.monotonic()
    loop.stop(timeout_seconds=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    free.set()


def test_stop_without_start() -> None:
    """Stopping a loop that was never started, or twice, does nothing; it does not start any more."""
    turns = Turns(Pause(0.0))
    loop = BackgroundLoop("never", turns)
    loop.stop()
    loop.stop()
    loop.run()
    assert turns.count == 0


def test_all_stop_within_one_timeout() -> None:
    """Hanging loops share one timeout, and every loop is signalled before any is waited for."""
    free = threading.Event()
    hanging = [Turns(Pause(0.0), lambda: hang(free)) for _ in range(3)]
    loops = [BackgroundLoop(f"hang-{number}", turns) for number, turns in enumerate(hanging)]
    turns = Turns(Pause(LONG))
    last = BackgroundLoop("last", turns)
    for loop in (*loops, last):
        loop.start()
    assert all(each.reached(1) for each in (*hanging, turns))
    began = time.monotonic()
    stop_all([*loops, last], timeout_seconds=0.5)
    assert 0.4 <= time.monotonic() - began < 3
    free.set()


def test_all_loops_signalled_before_waiting() -> None:
    """A loop that hangs does not keep the others running until its timeout."""
    free = threading.Event()
    hanging, turns = Turns(Pause(0.0), lambda: hang(free)), Turns(Pause(LONG))
    loops = [BackgroundLoop("hanging", hanging), BackgroundLoop("other", turns)]
    for loop in loops:
        loop.start()
    assert hanging.reached(1)
    assert turns.reached(1)
    stopper = threading.Thread(target=stop_all, args=(loops, LONG))
    stopper.start()
    deadline = time.monotonic() + LONG / 3
    while not ended(loops[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended(loops[1])
    assert not ended(loops[0])
    free.set()
    stopper.join()


def test_timer_is_due_once_per_interval() -> None:
    """At the first call, and then when the interval has passed since it was last due."""
    now = 100.0
    timer = Timer(10.0, lambda: now)
    assert timer.is_due()
    assert not timer.is_due()
    now += 9.9
    assert not timer.is_due()
    now += 0.1
    assert timer.is_due()
    now += 25.0
    assert [timer.is_due(), timer.is_due()] == [True, False]


@pytest.mark.parametrize(("pause", "least"), [(Pause(3.0), 0.0), (Pause.unwakeable(3.0), 3.0)])
def test_pause_has_minimum_sleep(pause: Pause, least: float) -> None:
    """A pause can be ended by a wake altogether, or not at all."""
    assert (pause.seconds, pause.least_seconds) == (3.0, least)
