"""Where log lines go."""

from __future__ import annotations

import os

from airbridge.edge_worker.runner.channel import LogChannel


def test_what_is_kept_is_written_first_once_the_channel_is_pointed() -> None:
    """A task's log starts with what its file logged as it was parsed ahead of time."""
    read, write = os.pipe()
    channel = LogChannel(write)
    channel.keep(True)
    channel.write(b"parsed\n")
    channel.keep(False)
    channel.point_at(write)
    channel.write(b"ran\n")
    assert os.read(read, 100) == b"parsed\nran\n"


def test_keeping_is_bounded_and_can_be_forgotten() -> None:
    """Whole lines are dropped, not torn."""
    read, write = os.pipe()
    channel = LogChannel(write)
    channel.keep(True)
    channel.write(b"first\n")
    channel.write(b"x" * 1_000_000)
    channel.point_at(write)
    assert os.read(read, 2_000_000) == b"first\n"
    channel.keep(True)
    channel.write(b"gone\n")
    channel.forget()
    channel.write(b"last\n")
    assert os.read(read, 100) == b"last\n"
