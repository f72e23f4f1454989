"""Files of the agent that tasks read and other users of the host do not, whatever the agent's umask is.

Tasks of another user read them by that user's group. The agent stays their owner: an owner can change what it may only read.
"""

from __future__ import annotations

import os
from pathlib import Path

from airbridge.edge_worker.runner.sandbox.task_user import TaskUser


def make_directory(path: Path, user: TaskUser | None) -> None:
    """Make a directory that tasks can list; `user` is None if they run as the agent's. Raises `OSError`."""
    path.mkdir(parents=True, exist_ok=True)
    _admit(path, user, alone=0o700, with_group=0o750)


def replace(path: Path, text: str, user: TaskUser | None) -> None:
    """Write a file that tasks can read, in place of what is there, at once. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    admit(temporary, user)
    temporary.write_text(text)
    os.replace(temporary, path)  # noqa: PTH105 - atomic, and named for it


def admit(path: Path, user: TaskUser | None) -> None:
    """Let tasks read a file, and nobody else. Raises `OSError`."""
    _admit(path, user, alone=0o600, with_group=0o640)


def _admit(path: Path, user: TaskUser | None, *, alone: int, with_group: int) -> None:
    if user is not None:
        os.chown(path, -1, user.gid)
    path.chmod(alone if user is None else with_group)
