"""What makes a parsed DAG file unfit to be shared between tasks, found out while it is parsed.

Under Airflow's own executors each task parses its file anew. A file parsed once, ahead of time, means the same
only if parsing it leaves nothing behind that a fork breaks (threads, open descriptors, children, signal handlers)
and depends on nothing that may differ from task to task (the parsing context, variables and connections, random
numbers, the network, files outside of the snapshot). Anything of this kind is a hazard, and one is enough.

What cannot be seen: values of the clock, and input that a C extension reads without Python's knowledge and closes
again. Those are as old as the parsed file, which `RunnerSettings.parse_ttl_seconds` bounds.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import site
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from airbridge.edge_worker.runner import process

PARSING_CONTEXT: Final = frozenset({"_AIRFLOW_PARSING_CONTEXT_DAG_ID", "_AIRFLOW_PARSING_CONTEXT_TASK_ID"})
"""Where `airflow.sdk.get_parsing_context` looks."""

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
"""Audit events of Python that are hazards as such."""

_STEADY: Final = ("/proc/", "/sys/", "/dev/", "/usr/", "/lib", "/etc/localtime", "/etc/timezone", "/etc/mime.types", "/etc/ssl/", "/etc/os-release", "/etc/hosts", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/protocols", "/etc/services")  # fmt: skip
"""Files of the system that libraries read at import and that do not change under a running worker."""

_PARSERS_OWN: Final = {signal.SIGALRM}
"""Signals that Airflow itself handles while it parses: this one for its import timeout."""

_MAX_HAZARDS: Final = 10


@dataclass
class Watch:
    """The hazards seen so far, each once, in order."""

    bundle_path: Path
    hazards: list[str] = field(default_factory=list)

    def note(self, hazard: str) -> None:
        """Remember a hazard."""
        if hazard not in self.hazards and len(self.hazards) < _MAX_HAZARDS:
            self.hazards.append(hazard)

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Judge one of Python's audit events."""
        if event == "open":
            self._judge_open(args[0], args[2])
        elif event in _EVENTS:
            self.note(_EVENTS[event])

    def _judge_open(self, path: object, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - must not follow links, and is called often
        if "__pycache__" in name:
            return
        if flags & (os.O_WRONLY | os.O_RDWR):
            if not name.startswith("/dev/"):
                self.note(f"writes the file {name}")
        elif not name.startswith(self._code()) and not name.endswith((".py", ".so")):
            self.note(f"reads the file {name}, which is not part of the DAG code")

    def _code(self) -> tuple[str, ...]:
        return (f"{self.bundle_path}/", *_STEADY, *_PYTHON)


_PYTHON: Final = tuple(
    f"{root}/" for root in {sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()}
)

_watches: Final[list[Watch]] = []
"""The watch that is on, if any: Python's audit hooks cannot be taken off again, only told to look away."""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watches:
        _watches[-1].audit(event, args)


@functools.cache
def _install_hook() -> None:
    sys.addaudithook(_audit)


class _WatchedEnviron(os._Environ[str]):  # noqa: SLF001 - the class of os.environ has no public name
    """`os.environ` that tells when the parsing context is asked for."""

    def __getitem__(self, key: str) -> str:
        if key in PARSING_CONTEXT and _watches:
            _watches[-1].note("asks for the parsing context")
        return super().__getitem__(key)


@dataclass(frozen=True)
class _State:
    """What is compared before and after the parse."""

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
            signals={number: signal.getsignal(number) for number in signal.valid_signals() - _PARSERS_OWN},
            randomness=random.getstate(),
        )


@contextmanager
def watching(bundle_path: Path) -> Iterator[Watch]:
    """Watch what the code in the block does; afterwards the watch holds its hazards."""
    watch = Watch(bundle_path)
    before = _State.now()
    _install_hook()
    plain = type(os.environ)
    with _unpredictable_noted(watch):
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
        watch.note(f"leaves {after.descriptors[fd]} open")
    if after.threads > before.threads:
        watch.note("starts threads")
    if after.children > before.children:
        watch.note("leaves a child process running")
    if after.signals != before.signals:
        watch.note("sets signal handlers")
    if after.randomness != before.randomness or _numpy_touched():
        watch.note("draws or seeds random numbers")


def _numpy_touched() -> bool:
    """Whether numpy's global generator was seeded with a number or drawn from since numpy seeded it itself.

    Seeding from the system's entropy leaves 2**31 as the first word of the Mersenne Twister's key and a position of
    623; seeding with a number or a list, and drawing, leave something else.
    """
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is None:
        return False
    _name, key, position, *_rest = numpy_random.get_state()
    return bool(key[0] != 2**31 or position != 623)


@contextmanager
def _unpredictable_noted(watch: Watch) -> Iterator[None]:
    """Note when the system's own randomness is drawn: `uuid.uuid4`, `secrets`, `random.SystemRandom`."""
    original = os.urandom

    def noting(size: int) -> bytes:
        if _watches and _asked_by_user_code(watch.bundle_path):
            watch.note("draws random numbers from the system")
        return original(size)

    places: list[tuple[Any, str]] = [(os, "urandom"), (random, "_urandom")]
    _set_all(places, noting)
    try:
        yield
    finally:
        _set_all(places, original)


def _set_all(places: list[tuple[Any, str]], function: Callable[[int], bytes]) -> None:
    for module, name in places:
        setattr(module, name, function)


def _asked_by_user_code(bundle_path: Path) -> bool:
    """Whether the nearest caller outside of Python's own library and site-packages is the snapshot's code.

    Libraries draw randomness at import (hash seeds, temporary names) without it reaching the DAG.
    """
    frame = sys._getframe(2)  # noqa: SLF001 - inspect.stack() is a thousand times slower
    depth = 0
    while frame is not None and depth < 4:
        if frame.f_code.co_filename.startswith(f"{bundle_path}/"):
            return True
        depth += 1
        frame = frame.f_back  # type: ignore[assignment]
    return False
