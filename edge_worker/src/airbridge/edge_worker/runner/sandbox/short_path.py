"""A short name for the directory of the tasks' working directories, so that UNIX sockets fit beneath a task's TMPDIR.

A socket's path holds 107 bytes on Linux, and the state directory may take most of them. A symbolic link is enough: Landlock judges
the place that a path leads to, not the path.

The link's folder must be hidden from tasks, or one could lead another's TMPDIR elsewhere. Beside what is hidden a task can make
nothing, so the folder is not in /tmp, where tasks expect to.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

# The second is a user's own, where there is a session of a service manager.
_PLACES: Final = ("/run", f"/run/user/{os.geteuid()}", "/var/tmp")  # noqa: S108  # in a folder of this process's own
_PREFIX: Final = "ab-"
_LINK: Final = "t"


def place() -> str | None:
    """Return the directory that a link can be made in; None if there is none."""
    return next((one for one in _PLACES if os.access(one, os.W_OK | os.X_OK)), None)


def make(target: Path) -> Path | None:
    """Return a new short link to `target`, in a directory that only this user can write to; None if none can be made."""
    parent = place()
    if parent is None:
        return None
    _remove_earlier(Path(parent), target)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        (folder / _LINK).symlink_to(target)
        folder.chmod(0o711)  # tasks of another user pass through
    except OSError:
        remove(folder / _LINK)
        return None
    return folder / _LINK


def remove(link: Path) -> None:
    """Remove a link and its folder. A folder with anything else in it stays."""
    with suppress(OSError):
        link.unlink(missing_ok=True)
        link.parent.rmdir()


def shortest(working_dir: Path, tasks_dir: str, link: str) -> str:
    """Return the name of a working directory through `link`, or its own if the link leads there no longer."""
    if not link:
        return str(working_dir)
    short = Path(link, working_dir.relative_to(tasks_dir))
    try:
        return str(short if short.samefile(working_dir) else working_dir)
    except OSError:
        return str(working_dir)


def _remove_earlier(parent: Path, target: Path) -> None:
    """Remove what processes that were killed have left behind: links to the same directory, and to none."""
    for folder in parent.glob(f"{_PREFIX}*"):
        link = folder / _LINK
        with suppress(OSError):
            left = link.readlink() == target or not link.exists()
            if left and link.lstat().st_uid == os.geteuid() and [link] == list(folder.iterdir()):
                remove(link)
