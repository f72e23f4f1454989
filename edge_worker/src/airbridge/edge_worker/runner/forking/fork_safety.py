"""Fork safety: detection, during a parse, of DAG files whose parsed form must not be shared between tasks.

Under Airflow's own executors each task parses its file anew. A file parsed once, ahead of time, means the same
only if parsing it leaves nothing behind that a fork breaks (threads, open descriptors, children, signal handlers)
and depends on nothing that may differ from task to task (the parsing context, variables and connections, random
numbers, the network, files outside of the snapshot). Anything of this kind is a violation, and one is enough.

Not detected: values of the clock, and input that a C extension reads without raising an audit event and closes again.
Those are as old as the parsed file, which `RunnerSettings.parse_ttl_seconds` bounds.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import site
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from airbridge.edge_worker.runner import process

# Variables that `airflow.sdk.get_parsing_context` reads.
PARSING_CONTEXT: Final = frozenset({"_AIRFLOW_PARSING_CONTEXT_DAG_ID", "_AIRFLOW_PARSING_CONTEXT_TASK_ID"})

# Audit events of Python that are always violations.
_EVENTS: Final = {
    "socket.connect": "connects to the network",
    "socket.bind": "binds a socket",
    "socket.getaddrinfo": "looks up a network name",
    "sqlite3.connect": "opens a database",
    "subprocess.Popen": "starts a process",
    "os.system": "starts a process",
    "os.fork": "forks",
    "os.forkpty": "forks",
    "os.posix_spawn": "starts a process",
}

# Files of the system that libraries read at import and that do not change under a running worker.
_STABLE_FILES: Final = ("/proc/", "/sys/", "/dev/", "/usr/", "/lib", "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/ssl/", "/etc/os-release", "/etc/hosts", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/protocols", "/etc/services")  # fmt: skip

# Signals that Airflow handles while it parses: SIGALRM for its import timeout.
_PARSER_SIGNALS: Final = {signal.SIGALRM}

# Of one file; the paths in them are as long as the file's code makes them.
MAX_VIOLATIONS: Final = 10
VIOLATION_CHARACTERS: Final = 500


def bounded(violations: Iterable[str]) -> tuple[str, ...]:
    """Return the first violations, each cut to its bound. A template, which runs user code, may send any number of any length."""
    return tuple(each[:VIOLATION_CHARACTERS] for each in islice(violations, MAX_VIOLATIONS))


@dataclass
class Watch:
    """Violations found so far, each once, in order."""

    bundle_path: Path
    environment: str = ""
    violations: list[str] = field(default_factory=list)

    def add(self, violation: str) -> None:
        """Add a violation, or the beginning of a long one."""
        [kept] = bounded([violation])
        if kept not in self.violations and len(self.violations) < MAX_VIOLATIONS:
            self.violations.append(kept)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Check one of Python's audit events."""
        if event == "open":
            self._check_open(args[0], args[2])
        elif event in _EVENTS:
            self.add(_EVENTS[event])

    def _check_open(self, path: object, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - must not follow links, and is called often
        if "__pycache__" in name:
            return
        if flags & (os.O_WRONLY | os.O_RDWR):
            if not name.startswith("/dev/"):
                self.add(f"writes the file {name}")
        elif not name.startswith(self._code()) and not name.endswith((".py", ".so")):
            self.add(f"reads the file {name}, which is not part of the DAG code")

    def _code(self) -> tuple[str, ...]:
        packages = (f"{self.environment}/",) if self.environment else ()
        return (f"{self.bundle_path}/", *packages, *_STABLE_FILES, *_PYTHON)


_PYTHON: Final = tuple(
    f"{root}/" for root in {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()}
)

# The active watch, if any. Python's audit hooks cannot be removed, so the hook does nothing without one.
_watches: Final[list[Watch]] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watches:
        _watches[-1].audit(event, args)


@functools.cache
def _install_hook() -> None:
    sys.addaudithook(_audit)


class _WatchedEnviron(os._Environ[str]):  # noqa: SLF001 - the class of os.environ has no public name
    """`os.environ` that records reads of the parsing context."""

    def __getitem__(self, key: str) -> str:
        if key in PARSING_CONTEXT and _watches:
            _watches[-1].add("reads the parsing context")
        return super().__getitem__(key)


@dataclass(frozen=True)
class _State:
    """State of the process that is compared before and after the parse."""

    descriptors: dict[int, str]
    threads: int
    children: int
    signals: dict[int, Any]
    randomness: object

    @classmethod
    def now(cls) -> _State:
        return cls(
            descriptors=process.descriptors(),
            threads=process.thread_count(),
            children=len(process.children()),
            signals={number: signal.getsignal(number) for number in signal.valid_signals() - _PARSER_SIGNALS},
            randomness=random.getstate(),
        )


@contextmanager
def watching(bundle_path: Path, environment: str = "") -> Iterator[Watch]:
    """Watch the code in the block; afterwards the watch holds its violations. Files of the bundle and its environment may be read."""
    watch = Watch(bundle_path, environment)
    before = _State.now()
    _install_hook()
    plain = type(os.environ)
    with _entropy_watched(watch):
        # The object's class is swapped, not the object: reads of a variable raise no audit event, and Airflow and
        # libraries hold references to this very object (``from os import environ``), which a replacement would miss.
        # Layout and attributes of both classes are the same, so the assignment is allowed; it is undone below.
        os.environ.__class__ = _WatchedEnviron
        _watches.append(watch)
        try:
            yield watch
        finally:
            _watches.pop()
            os.environ.__class__ = plain
    _compare(watch, before, _State.now())


def _compare(watch: Watch, before: _State, after: _State) -> None:
    for fd in after.descriptors.keys() - before.descriptors.keys():
        watch.add(f"leaves {after.descriptors[fd]} open")
    if after.threads > before.threads and _threads_after_fork() > before.threads:
        watch.add("starts threads")
    if after.children > before.children:
        watch.add("leaves a child process running")
    if after.signals != before.signals:
        watch.add("sets signal handlers")
    if after.randomness != before.randomness or _numpy_touched():
        watch.add("draws or seeds random numbers")


def _threads_after_fork() -> int:
    """Return how many threads are left once this process has forked.

    Libraries that can be forked end their threads before, and start them again when they need them: OpenBLAS, and so numpy, which starts
    threads at import.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return process.thread_count()


def _numpy_touched() -> bool:
    """Return whether numpy's global generator was seeded with a number, or drawn from, since numpy seeded it itself."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return False
    _name, key, position, *_rest = numpy_random.get_state()
    # numpy's own seeding, from the system's entropy, leaves 2**31 as the first word of the Mersenne Twister's key and a
    # position of 623; any other seeding, and any draw, leave something else.
    return bool(key[0] != 2**31 or position != 623)


@contextmanager
def _entropy_watched(watch: Watch) -> Iterator[None]:
    """Record draws from the system's randomness by the DAG code: `uuid.uuid4`, `secrets`, `random.SystemRandom`."""
    original = os.urandom

    def watched(size: int) -> bytes:
        if _watches and _called_by_user_code(watch.bundle_path):
            watch.add("draws random numbers from the system")
        return original(size)

    # `random` has its own reference to the function, which `SystemRandom` and the seeding use.
    targets: list[tuple[Any, str]] = [(os, "urandom"), (random, "_urandom")]
    _set_all(targets, watched)
    try:
        yield
    finally:
        _set_all(targets, original)


def _set_all(targets: list[tuple[Any, str]], function: Callable[[int], bytes]) -> None:
    for module, name in targets:
        setattr(module, name, function)


def _called_by_user_code(bundle_path: Path) -> bool:
    """Return whether one of the four nearest callers is the snapshot's code."""
    # Only near callers: libraries draw randomness at import (hash seeds, temporary names) that never reaches the DAG.
    frame = sys._getframe(2)  # noqa: SLF001 - inspect.stack() is a thousand times slower
    depth = 0
    while frame is not None and depth < 4:
        if frame.f_code.co_filename.startswith(f"{bundle_path}/"):
            return True
        depth += 1
        frame = frame.f_back  # type: ignore[assignment]
    return False
