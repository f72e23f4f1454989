"""File system that the tasks of a DAG file see, where the kernel lets a process have mounts of its own.

The worker's files are covered, so the directories above them can be listed as they are. Landlock keeps them closed all the same, except
beneath /tmp, /var/tmp and HOME: tasks expect to make files there, and a right to do so holds for all beneath.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from airbridge.core.sandbox.mounts import Shown, View

# Directories that any program makes files in, besides HOME.
_COMMON: Final = ("/tmp", "/var/tmp")  # noqa: S108 - not used by this process

# Not the name of `tasks_dir`: no path of another task exists in the view.
_WORK: Final = "work"


class TaskView(NamedTuple):
    """View of one DAG file's tasks, and what Landlock closes and opens in it."""

    mounts: View
    #: The directory of the file's working directories, as it is seen.
    work: str
    #: What Landlock closes.
    closed: tuple[str, ...]
    #: Directories that can be listed, with all beneath.
    listed: tuple[str, ...]


def shared_above(path: Path) -> set[Path]:
    """Return the directories above `path` that tasks expect to make files in. It has no symbolic links."""
    common = {Path(os.path.realpath(one)) for one in (*_COMMON, os.environ.get("HOME") or "/")}
    return common.intersection(path.parents) - {Path("/")}


def plan(hidden: Iterable[str], readable: Iterable[str], work: Path, link: str) -> TaskView:
    """Return the view for the tasks of a DAG file whose working directories are in `work`.

    They are seen in the folder of `link`, if there is one: there, Landlock keeps one task's from the other's.
    """
    outermost = _outermost(Path(path) for path in hidden)
    covered = {path for path in outermost if path.is_dir()}
    folder = Path(link).parent.resolve() if link else _cover_of(work, covered)
    seen = folder / _WORK / work.name
    shared = _open_to_tasks(outermost, covered, folder)
    closed = {path for path in outermost if shared.isdisjoint(path.parents)}
    shown = (*(Shown(path, path) for path in readable), Shown(str(work), str(seen), writable=True))
    view = View(
        covered=_texts(covered),
        shown=shown,
        read_only=_texts(outermost - covered),
        pinned=_texts(_between(shared, outermost)),
        links=((link, str(seen.parent)),) if link else (),
    )
    above = {parent for path in closed for parent in path.parents}
    return TaskView(view, str(seen), _texts(closed), _texts(above))


def _outermost(paths: Iterable[Path]) -> set[Path]:
    every = set(paths)
    return {path for path in every if every.isdisjoint(path.parents)}


def _cover_of(path: Path, covered: set[Path]) -> Path:
    return next(one for one in (path, *path.parents) if one in covered)


def _open_to_tasks(hidden: set[Path], covered: set[Path], folder: Path) -> set[Path]:
    """Return the shared directories above something hidden that hold nothing which only Landlock can close."""
    above = {shared for path in hidden for shared in shared_above(path)}
    needed = {folder, *(hidden - covered)}
    return {one for one in above if not any(path.is_relative_to(one) for path in needed)}


def _between(shared: set[Path], hidden: set[Path]) -> set[Path]:
    """Return the directories that a task could otherwise rename, with what is hidden beneath them."""
    return {parent for path in hidden for parent in path.parents if not shared.isdisjoint(parent.parents)}


def _texts(paths: set[Path]) -> tuple[str, ...]:
    return tuple(sorted(map(str, paths)))
