"""Sandbox between tasks, and between a task and the worker.

Everything that user code can run in (templates, tasks and what they start) is non-dumpable and, where the kernel has
Landlock, inside a domain of its own: a template sees its own snapshot and environment and none of the worker's other files; a task sees, of
the worker's files, these two and its own working directory. Where a process can have mounts of its own, the rest is not there for
it. None can look into, trace, limit or signal a process that is
not below it. No user code runs in a supervisor; it is non-dumpable all the same, and sees none of the worker's files.
"""

from __future__ import annotations

import os
import resource
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from airbridge.core.sandbox import capabilities, hardening, landlock, mounts, seccomp
from airbridge.core.sandbox.landlock import READ, Access, Domain, PathRule
from airbridge.edge_worker.runner.messages import Source
from airbridge.edge_worker.runner.sandbox import short_path, view

# Share of its limit of open files that a template may use for visible paths.
_SHARE_OF_DESCRIPTORS: Final = 0.5


class Sandbox(msgspec.Struct, frozen=True):
    """Paths of a sandbox, without symbolic links.

    `hidden` is closed to everything that runs user code, except for the snapshot, `airflow_home` (to be read) and a
    working directory beneath `tasks_dir`. `landlock` of 0 means that the kernel has none, or that it is not wanted.
    """

    hidden: tuple[str, ...]
    airflow_home: str
    tasks_dir: str
    landlock: int = 0
    #: Whether a process can have a view of the file system, in which what is hidden is covered.
    mounts: bool = False
    #: A short link to `tasks_dir`, where that is too long for UNIX sockets in a task's TMPDIR, or tasks may write above it.
    tasks_link: str = ""
    #: Paths among those that are hidden that can be read all the same.
    readable: tuple[str, ...] = ()

    #: The directory of the working directories of a DAG file's tasks, once `with_view`.
    work: str = ""
    #: What Landlock closes, once `with_view`; what is hidden before.
    closed: tuple[str, ...] = ()
    #: Directories that can be listed, with all beneath, once `with_view`.
    listed: tuple[str, ...] = ()

    #: All that is not closed, once `with_visible_paths`: from inside of a domain it cannot be found out any
    #: more.
    visible: tuple[str, ...] = ()

    #: The same and what can be listed, open, where there are not too many places to keep open: entering takes half the time of paths.
    #:
    #: What takes the place of one of them later is not seen before the file is parsed again, and what is
    #: mounted on one stays busy.
    opened: tuple[PathRule, ...] = ()

    def directory_of(self, source: Source) -> Path:
        """Return the directory of the working directories of a DAG file's tasks: the only ones that its template may see."""
        name = "\0".join((source.bundle_name, source.bundle_version, source.dag_rel_path))
        # Short: UNIX sockets that a task makes in its TMPDIR hold 107 bytes.
        return Path(self.tasks_dir, sha256(name.encode()).hexdigest()[:8])

    def make_working_dir(self, source: Source) -> tuple[Path, Path]:
        """Make a working directory for one task; return it, and its parent."""
        shared = self.directory_of(source)
        shared.mkdir(mode=0o700, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="", dir=shared)), shared

    def with_view(self, source: Source) -> Sandbox:
        """Give this process, a template, and its tasks a view of the file system; return the same sandbox for it.

        Before `with_visible_paths`: no directory may be open yet.
        """
        if not self.mounts:
            return self
        readable = (*source.code_paths, self.airflow_home, *self.readable)
        planned = view.plan(self.hidden, readable, self.directory_of(source), self.tasks_link)
        mounts.enter(planned.mounts)
        return msgspec.structs.replace(self, work=planned.work, closed=planned.closed, listed=planned.listed)

    def with_visible_paths(self) -> Sandbox:
        """Return the same sandbox with the visible paths listed and opened, for a template to fork tasks with."""
        if not self.landlock:
            return self
        visible = self._visible()
        few = len(visible) <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _SHARE_OF_DESCRIPTORS
        opened: tuple[PathRule, ...] = ()
        if few:
            listed = landlock.opened(self.listed, Access.READ_DIR)
            opened = (*landlock.opened(visible, landlock.everything(self.landlock)), *listed)
        return msgspec.structs.replace(self, visible=visible, opened=opened)

    def _visible(self) -> tuple[str, ...]:
        return landlock.all_but(Path(path) for path in (self.closed if self.work else self.hidden))

    def after_parse(self) -> Sandbox:
        """Return the same sandbox, without open paths if a DAG file has closed descriptors that it did not open."""
        if all(place.there for place in self.opened):
            return self
        for place in self.opened:
            if place.there:
                os.close(place.fd)
        return msgspec.structs.replace(self, opened=())

    def restrict_template(self, source: Source) -> None:
        """Restrict this process before it parses a DAG file."""
        hardening.harden()
        self._enter(source, Path(self.work) if self.work else self.directory_of(source))
        if self.landlock and seccomp.available():
            # Landlock keeps signals from others, not limits: one of CPU time kills like a signal.
            seccomp.keep_to_own_limits()

    def restrict_supervisor(self) -> None:
        """Take the worker's files from this process. It has to be able to signal tasks, which are not below it.

        Its HOME is one that no task can write to: libraries execute what they find there, such as the `credential_process` of
        ``~/.aws/config``.
        """
        hardening.harden()
        capabilities.drop()
        os.environ["HOME"] = self.airflow_home
        if self.landlock:
            domain = self._visible_domain(signals=True)
            domain.grant(self.airflow_home, READ)
            domain.enter()

    def restrict_task(self, source: Source, working_dir: Path) -> None:
        """Move this process into `working_dir`, and restrict it, with that as the only place among the worker's files to write to.

        What was kept open for it is closed: no task has it. A HOME that is hidden is of no use to a task, so `working_dir` takes its
        place.
        """
        hardening.harden()
        tasks_dir = self.tasks_dir
        if self.work:
            tasks_dir, working_dir = os.path.dirname(self.work), Path(self.work, working_dir.name)  # noqa: PTH120
        self._enter(source, working_dir)
        _close(sorted(place.fd for place in self.opened))
        os.chdir(working_dir)
        os.environ["TMPDIR"] = short_path.shortest(working_dir, tasks_dir, self.tasks_link)
        tempfile.tempdir = None
        if self._is_hidden(os.environ.get("HOME", "/")):
            os.environ["HOME"] = os.environ["TMPDIR"]

    def _is_hidden(self, path: str) -> bool:
        place = Path(real(Path(path)))
        return any(place.is_relative_to(hidden) for hidden in self.hidden)

    def _enter(self, source: Source, writable: Path) -> None:
        capabilities.drop()
        if not self.landlock:
            return
        domain = self._visible_domain()
        for readable in (*source.code_paths, self.airflow_home, *self.readable):
            domain.grant(readable, READ)
        domain.grant(writable, landlock.everything(self.landlock))
        domain.enter()

    def _visible_domain(self, *, signals: bool = False) -> Domain:
        """Return a new domain with all that is not closed granted."""
        rights = landlock.everything(self.landlock)
        domain = Domain(rights, self.landlock, signals=signals)
        if self.opened:
            domain.grant_opened(self.opened)
            return domain
        for path in self.visible or self._visible():
            domain.grant(path, rights)
        for path in self.listed:
            domain.grant(path, Access.READ_DIR)
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


def build(
    hidden: tuple[Path, ...],
    airflow_home: Path,
    tasks_dir: Path,
    *,
    version: int,
    can_mount: bool = False,
    tasks_link: Path | None = None,
    readable: tuple[Path, ...] = (),
) -> Sandbox:
    """Return the sandbox for these paths."""
    return Sandbox(
        tuple(sorted({real(path) for path in (*hidden, tasks_dir)})),
        real(airflow_home),
        real(tasks_dir),
        version,
        can_mount,
        str(tasks_link or ""),
        tuple(map(real, readable)),
    )


def decode(text: str) -> Sandbox:
    """Return a sandbox from `encode`d text."""
    sandbox: Any = msgspec.json.decode(text, type=Sandbox)
    return sandbox  # type: ignore[no-any-return]  # msgspec's overloads lose it


def encode(sandbox: Sandbox) -> str:
    """Return a sandbox as text, for a command line."""
    return msgspec.json.encode(sandbox).decode()
