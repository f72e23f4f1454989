"""The zygote's templates: one per DAG file of a snapshot, within bounds of number, memory and age."""

from __future__ import annotations

import os
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from airbridge.edge_worker.runner import process
from airbridge.edge_worker.runner.messages import Source

# Seconds for which a template may parse; Airflow's own ``dagbag_import_timeout`` (30 s) strikes long before.
_PARSE_SECONDS: Final = 300.0


@dataclass(frozen=True)
class Limits:
    """Bounds of the templates."""

    max_templates: int
    template_memory_bytes: int
    parse_ttl_seconds: float


@dataclass(eq=False)
class PendingSpawn:
    """A task that has no supervisor yet, and the descriptors for it."""

    source: Source
    warm: bool
    fds: list[int]

    def close(self) -> None:
        """Close the descriptors in this process."""
        for fd in self.fds:
            with suppress(OSError):
                os.close(fd)


@dataclass(frozen=True)
class TemplateKey:
    """A DAG file, parsed by the template or by each of its tasks."""

    source: Source
    parsed: bool


@dataclass(eq=False)
class Template:
    """A template's process as the zygote sees it. `waiting` holds spawns until it is ready."""

    key: TemplateKey
    pid: int
    control: socket.socket
    created_at: float
    ready: bool = False
    pss_bytes: int = 0
    waiting: list[PendingSpawn] = field(default_factory=list)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self.control.fileno()

    def take_waiting(self) -> list[PendingSpawn]:
        """Return the waiting spawns, and hold none any more."""
        waiting, self.waiting = self.waiting, []
        return waiting


class TemplatePool:
    """Templates, least recently used first. `fork` forks one and returns its process id and the socket to it."""

    def __init__(self, limits: Limits, fork: Callable[[TemplateKey], tuple[int, socket.socket]]) -> None:
        self._limits = limits
        self._fork = fork
        self._templates: OrderedDict[TemplateKey, Template] = OrderedDict()
        self._unshared: dict[Source, float] = {}
        self.pids: set[int] = set()
        """Processes of all templates that have not been reaped, dropped ones included."""

    def __iter__(self) -> Iterator[Template]:
        return iter([*self._templates.values()])

    @property
    def parsing(self) -> bool:
        """Return whether a template is not ready yet."""
        return any(not template.ready for template in self)

    def template_for(self, spawn: PendingSpawn) -> Template:
        """Return the template for a spawn, a new one if need be. Raises `OSError` if none can be forked."""
        shared = spawn.warm and self._unshared.get(spawn.source, 0.0) <= time.monotonic()
        key = TemplateKey(spawn.source, parsed=shared)
        template = self._templates.get(key)
        if template is not None and self._expired(template):
            self.drop(template)
            template = None
        if template is None:
            template = self._create(key)
        self._templates.move_to_end(key)
        self.evict()
        return template

    def set_ready(self, template: Template, pss_bytes: int) -> None:
        """Mark a template ready to fork tasks. Call `evict` once its waiting spawns are assigned."""
        template.ready = True
        # Clamped: a DAG file that ran in the template may send any number.
        template.pss_bytes = max(0, min(pss_bytes, self._limits.template_memory_bytes))

    def unshare(self, template: Template) -> list[PendingSpawn]:
        """Have each task parse the template's file, until the TTL is over; return its waiting spawns."""
        self._unshared[template.key.source] = time.monotonic() + self._limits.parse_ttl_seconds
        waiting = self.drop(template)
        for spawn in waiting:
            # By itself, not by the TTL: with a short one the file would be parsed ahead of these tasks again.
            spawn.warm = False
        return waiting

    def drop(self, template: Template) -> list[PendingSpawn]:
        """Hang up on a template, which ends once its last task has; return its waiting spawns."""
        if self._templates.get(template.key) is template:
            del self._templates[template.key]
        template.control.close()
        return template.take_waiting()

    def evict(self) -> None:
        """Drop ready templates, least recently used first, until the bounds hold; the one used last stays."""
        while len(self._templates) > 1 and self._over_bounds():
            oldest = next((template for template in self if template.ready), None)
            if oldest is None or oldest is next(reversed(self._templates.values())):
                return
            self.drop(oldest)

    def kill_stuck_parses(self) -> None:
        """Kill templates that parse for too long."""
        for template in self:
            if not template.ready and time.monotonic() - template.created_at > _PARSE_SECONDS:
                process.kill(template.pid)

    def _create(self, key: TemplateKey) -> Template:
        pid, control = self._fork(key)
        template = Template(key, pid, control, created_at=time.monotonic())
        self._templates[key] = template
        self.pids.add(pid)
        return template

    def _expired(self, template: Template) -> bool:
        # One that still parses is never too old: its waiting spawns would start the parse anew for ever.
        age = time.monotonic() - template.created_at
        return template.ready and age > self._limits.parse_ttl_seconds

    def _over_bounds(self) -> bool:
        memory = sum(template.pss_bytes for template in self)
        too_many = len(self._templates) > self._limits.max_templates
        return too_many or memory > self._limits.template_memory_bytes
