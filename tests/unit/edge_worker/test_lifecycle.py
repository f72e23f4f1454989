"""Modes of a worker."""

from __future__ import annotations

from airbridge.core.protocol import WorkerState
from airbridge.edge_worker.lifecycle import ExitCode, Lifecycle, Mode


def modes(lifecycle: Lifecycle) -> list[Mode]:
    """Return the list that every change of the mode is added to."""
    found: list[Mode] = []
    lifecycle.on_change = found.append
    return found


def test_drain_can_be_resumed() -> None:
    """The control plane may drain and resume as often as it likes."""
    lifecycle = Lifecycle()
    seen = modes(lifecycle)
    for _ in range(2):
        lifecycle.drain("upgrade")
        assert not lifecycle.active
        lifecycle.resume()
        assert lifecycle.active
    assert seen == [Mode.DRAINING, Mode.ACTIVE] * 2
    assert not lifecycle.stop_requested.is_set()


def test_stop_cannot_be_resumed() -> None:
    """A process that is stopping ends, in spite of commands of the control plane."""
    lifecycle = Lifecycle()
    lifecycle.stop()
    lifecycle.resume()
    lifecycle.drain("too late")
    assert lifecycle.mode is Mode.STOPPING
    assert lifecycle.mode.reported is WorkerState.STOPPING
    assert lifecycle.stop_requested.is_set()


def test_first_hard_stop_counts() -> None:
    """The first hard stop sets exit code and reason; later requests change nothing."""
    lifecycle = Lifecycle()
    seen = modes(lifecycle)
    lifecycle.hard_stop(ExitCode.NO_IDENTITY, "revoked")
    lifecycle.hard_stop(ExitCode.HARD_STOP, "signal")
    lifecycle.stop()
    lifecycle.exit_with(ExitCode.NOT_FLUSHED)
    assert seen == [Mode.HARD_STOP]
    assert (lifecycle.exit_code, lifecycle.hard_stop_reason) == (ExitCode.NO_IDENTITY, "revoked")
