"""Destination of log lines."""

from __future__ import annotations

import os

from airbridge.edge_worker.runner.log_channel import LogChannel


def test_buffer_is_written_first() -> None:
    """A task's log starts with what its file logged as it was parsed ahead of time."""
    read, write = os.pipe()
    channel = LogChannel(write)
    channel.buffer(True)
    channel.write(b"parsed\n")
    channel.buffer(False)
    channel.redirect(write)
    channel.write(b"ran\n")
    assert os.read(read, 100) == b"parsed\nran\n"


def test_buffer_is_bounded_and_discardable() -> None:
    """Beyond the bound whole lines are dropped, not torn; a discarded buffer is not written."""
    read, write = os.pipe()
    channel = LogChannel(write)
    channel.buffer(True)
    channel.write(b"first\n")
    channel.write(b"x" * 1_000_000)
    channel.redirect(write)
    assert os.read(read, 2_000_000) == b"first\n"
    channel.buffer(True)
    channel.write(b"gone\n")
    channel.discard()
    channel.write(b"last\n")
    assert os.read(read, 100) == b"last\n"
