"""A user for task processes that is not the agent's."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from airbridge.core.sandbox import capabilities
from airbridge.edge_worker.exceptions import SettingsError

#: Capabilities of the agent. CAP_DAC_OVERRIDE measures and deletes working directories, which are the user's.
NEEDED: Final = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
}


@dataclass(frozen=True)
class TaskUser:
    """User that task processes run as. The agent is root: the kernel takes root's capabilities from a process that becomes another user.

    Those of an agent that is not root would stay with the tasks, which could become root by them.
    """

    name: str
    uid: int
    gid: int

    @classmethod
    def named(cls, name: str) -> Self:
        """Return the user of this name.

        Raises `SettingsError` if there is none, it is the agent's own or root, or the agent is not root with the `NEEDED` capabilities.
        """
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
        if (why := _why_not_root()) is not None:
            raise SettingsError(
                f"task_user {name!r} needs an agent that is root with {', '.join(NEEDED)}; {why}"
            )
        return cls(name, entry.pw_uid, entry.pw_gid)

    def chown(self, path: Path) -> None:
        """Make the user the owner of what the agent has made. Raises `OSError`."""
        os.chown(path, self.uid, self.gid, follow_symlinks=False)


def _why_not_root() -> str | None:
    """Return what this process lacks to run tasks as another user; None if it can."""
    if os.geteuid() != 0:
        return f"this one has uid {os.geteuid()}: start it as root, or remove task_user"
    lacking = [name for name, number in NEEDED.items() if not capabilities.holds(number)]
    if lacking:
        return f"this one lacks {', '.join(lacking)}, which its container or unit has to grant"
    return None
