"""What stands between tasks, and between a task and the worker.

Everything that user code can run in (templates, tasks and what they start) is non-dumpable and, where the kernel has
Landlock, inside a domain of its own: a template sees its own snapshot and none of the worker's other files; a task sees, of
the worker's files, the snapshot and its own working directory. None can look into, trace or signal a process that is not
below it. No user code runs in a supervisor; it is non-dumpable all the same, and sees none of the worker's files.
"""

from __future__ import annotations

import os
import resource
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from airbridge.edge_worker import capabilities
from airbridge.edge_worker.runner.messages import Source
from airbridge.executor import landlock, protection
from airbridge.executor.landlock import READ, Domain, Place

_SHARE_OF_DESCRIPTORS: Final = 0.5
"""How much of its limit of open files a template may use for what lies outside of the walls."""


class Walls(msgspec.Struct, frozen=True):
    """Where the walls stand. All paths are real ones.

    `hidden` is closed to everything that runs user code, except for the snapshot, `airflow_home` (to be read) and a
    working directory beneath `tasks_dir`. `landlock` of 0 means that the kernel has none, or that it is not wanted.
    """

    hidden: tuple[str, ...]
    airflow_home: str
    tasks_dir: str
    landlock: int = 0
    outside: tuple[str, ...] = ()
    """All that is not hidden, once `surveyed`: from inside of a domain it cannot be found out any more."""

    opened: tuple[Place, ...] = ()
    """The same, open, where there are not too many places to keep open: a task is walled in for half of what paths cost.

    What takes the place of one of them later is not seen before the file is parsed again, and what is mounted on one stays busy.
    """

    def directory_of(self, source: Source) -> Path:
        """Return where the working directories of a DAG file's tasks lie: the only ones its template may see."""
        name = "\0".join((source.bundle_name, source.bundle_version, source.dag_rel_path))
        # Short: UNIX sockets that a task makes in its TMPDIR have room for 107 bytes.
        return Path(self.tasks_dir, sha256(name.encode()).hexdigest()[:8])

    def make_room(self, source: Source) -> tuple[Path, Path]:
        """Make a working directory for one task; return it, and the one that it lies in."""
        shared = self.directory_of(source)
        shared.mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="", dir=shared)), shared

    def surveyed(self) -> Walls:
        """Return the same walls, with what lies outside of them written down, and open: for a template to fork with."""
        if not self.landlock:
            return self
        outside = landlock.all_but(Path(path) for path in self.hidden)
        few = len(outside) <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _SHARE_OF_DESCRIPTORS
        opened = landlock.opened(outside, landlock.everything(self.landlock)) if few else ()
        return msgspec.structs.replace(self, outside=outside, opened=opened)

    def after_parse(self) -> Walls:
        """Return the same walls, by their paths if a DAG file has closed at import what it did not open."""
        if all(place.there for place in self.opened):
            return self
        for place in self.opened:
            if place.there:
                os.close(place.fd)
        return msgspec.structs.replace(self, opened=())

    def around_template(self, source: Source) -> None:
        """Wall this process in before it parses a DAG file."""
        protection.harden()
        self._enter(source, self.directory_of(source))

    def around_supervisor(self) -> None:
        """Take the worker's files from this process. It has to be able to signal tasks, which are not below it."""
        protection.harden()
        capabilities.give_up()
        if self.landlock:
            domain = self._domain_outside(signals=True)
            domain.grant(self.airflow_home, READ)
            domain.enter()

    def around_task(self, source: Source, room: Path) -> None:
        """Move this process into `room`, and wall it in with that as the only place among the worker's files to write to.

        What was kept open for it is closed: no task has it. A HOME that is hidden is of no use to a task, so `room` takes its
        place.
        """
        protection.harden()
        self._enter(source, room)
        _close(sorted(place.fd for place in self.opened))
        os.chdir(room)
        os.environ["TMPDIR"] = str(room)
        tempfile.tempdir = None
        if self._hides(os.environ.get("HOME", "/")):
            os.environ["HOME"] = str(room)

    def _hides(self, path: str) -> bool:
        place = Path(real(Path(path)))
        return any(place.is_relative_to(hidden) for hidden in self.hidden)

    def _enter(self, source: Source, writable: Path) -> None:
        capabilities.give_up()
        if not self.landlock:
            return
        domain = self._domain_outside()
        for readable in (source.bundle_path, self.airflow_home):
            domain.grant(readable, READ)
        domain.grant(writable, landlock.everything(self.landlock))
        domain.enter()

    def _domain_outside(self, *, signals: bool = False) -> Domain:
        """Return a domain in the making that has all that lies outside of the walls."""
        rights = landlock.everything(self.landlock)
        domain = Domain(rights, self.landlock, signals=signals)
        if self.opened:
            domain.grant_opened(self.opened)
            return domain
        for path in self.outside or landlock.all_but(Path(path) for path in self.hidden):
            domain.grant(path, rights)
        return domain


def _close(fds: list[int]) -> None:
    """Close descriptors, each run of them with one system call."""
    first = 0
    for index, fd in enumerate(fds):
        if index + 1 == len(fds) or fds[index + 1] != fd + 1:
            os.closerange(fds[first], fd + 1)
            first = index + 1


def real(path: Path) -> str:
    """Return a path without symbolic links, absolute: what Landlock's grants go by."""
    return os.path.realpath(path)


def build(hidden: tuple[Path, ...], airflow_home: Path, tasks_dir: Path, *, version: int) -> Walls:
    """Return the walls around these paths."""
    return Walls(
        tuple(sorted({real(path) for path in (*hidden, tasks_dir)})),
        real(airflow_home),
        real(tasks_dir),
        version,
    )


def decode(text: str) -> Walls:
    """Return walls from `encode`d text."""
    walls: Any = msgspec.json.decode(text, type=Walls)
    return walls  # type: ignore[no-any-return]  # msgspec's overloads lose it


def encode(walls: Walls) -> str:
    """Return walls as text, for a command line."""
    return msgspec.json.encode(walls).decode()
