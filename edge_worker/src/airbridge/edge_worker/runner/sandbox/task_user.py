"""A user for task processes that is not the agent's."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from airbridge.edge_worker.exceptions import SettingsError


@dataclass(frozen=True)
class TaskUser:
    """User that task processes run as. The agent must be root, or hold CAP_SETUID, CAP_SETGID, CAP_CHOWN and CAP_KILL."""

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the user of this name. Raises `SettingsError` if there is none, or it is the agent's own or root."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError as error:
            raise SettingsError(
                f"task_user {name!r} is not a user of this host; create it: useradd --system {name}"
            ) from error
        if entry.pw_uid in {0, os.geteuid()}:
            raise SettingsError(
                f"task_user {name!r} has uid {entry.pw_uid}; it must be neither root nor the agent's own user"
            )
        return cls(name, entry.pw_uid, entry.pw_gid)

    def chown(self, *paths: Path) -> None:
        """Make the user the owner of files that the agent has made. Raises `SettingsError` without the right to."""
        try:
            for path in paths:
                os.chown(path, self.uid, self.gid, follow_symlinks=False)
        except PermissionError as error:
            raise SettingsError(
                f"task_user {self.name!r} needs an agent that is root, or has CAP_SETUID, CAP_SETGID, CAP_CHOWN and CAP_KILL"
            ) from error
