"""Files outside of `state_dir` that the worker executes or takes its credentials from, and which of them tasks could change."""

from __future__ import annotations

import os
import site
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

# Variables that name them, and where botocore looks without. It executes the `credential_process` of either.
_OF_AWS: Final = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}


def trusted(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the directories that this interpreter imports from, and the files of AWS. Some may not exist."""
    yield from (Path(each) for each in sys.path if each)
    if site.ENABLE_USER_SITE:
        yield Path(site.getusersitepackages())
    home = environ.get("HOME") or os.path.expanduser("~")  # noqa: PTH111 - of the user's entry, if HOME is not set
    for variable, name in _OF_AWS.items():
        yield Path(environ.get(variable) or Path(home, ".aws", name))


def changeable(paths: Iterable[Path], uid: int, hidden: Iterable[Path]) -> list[Path]:
    """Return the places among `paths`, or those in which a missing one could be made, that a user's processes can change.

    What is beneath a `hidden` path is closed to tasks.
    """
    closed = [os.path.realpath(path) for path in hidden]
    places = {Path(os.path.realpath(path)) for path in paths}
    existing = {next(one for one in (place, *place.parents) if one.exists()) for place in places}
    seen = {place for place in existing if not any(place.is_relative_to(one) for one in closed)}
    return sorted(place for place in seen if _changeable(place, uid))


def _changeable(path: Path, uid: int) -> bool:
    """Return whether a user can write to a path, or put another in its place, as owners and modes go."""
    return _writable(path, uid) or any(
        _writable(parent, uid) and not parent.stat().st_mode & stat.S_ISVTX for parent in path.parents
    )


def _writable(path: Path, uid: int) -> bool:
    found = path.stat()
    # Whatever the mode of what the user owns: an owner changes it.
    return found.st_uid == uid or bool(found.st_mode & stat.S_IWOTH)
