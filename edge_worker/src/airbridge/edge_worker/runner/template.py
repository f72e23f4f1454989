"""A template: a process with one DAG file parsed, from which supervisors are forked."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from airbridge.edge_worker import _airflow
from airbridge.edge_worker.runner import hazards, messages, process, supervise
from airbridge.edge_worker.runner.loop import ChildSignals, Waitable, wait_readable
from airbridge.edge_worker.runner.messages import Parsed, Reaped, Source, Spawn
from airbridge.edge_worker.runner.walls import Walls

_PRINTED_BYTES: Final = 64 * 1024


def run(source: Source, control: socket.socket, walls: Walls) -> None:
    """Wall this process in, parse the file, tell the zygote, and fork supervisors until the zygote hangs up."""
    process.name_self(process.TEMPLATE, f"airbridge template {source.dag_rel_path}")
    walls = walls.surveyed()
    walls.around_template(source)
    parsed, found = _parse(source)
    if found:
        messages.send(control, Parsed(hazards=tuple(found)))
        return
    walls = walls.after_parse()
    gc.collect()
    gc.freeze()
    messages.send(control, Parsed(pss_bytes=process.pss_bytes()))
    _serve(control, parsed, walls)


def _parse(source: Source) -> tuple[_airflow.ParsedFile, list[str]]:
    """Parse, and keep what the file logs and prints for the logs of its tasks."""
    _airflow.LOG_CHANNEL.keep(True)
    with (
        _printed_is_logged(),
        hazards.watching(Path(source.bundle_path)) as watch,
        _airflow.parsing_ahead(watch.note),
    ):
        parsed = _airflow.parse(source)
    _airflow.LOG_CHANNEL.keep(False)
    for error in parsed.errors.values():
        watch.note(f"cannot be imported: {error.strip().splitlines()[-1]}")
    return parsed, watch.hazards


@contextmanager
def _printed_is_logged() -> Iterator[None]:
    channels = {"stdout": 1, "stderr": 2}
    saved = {name: os.dup(fd) for name, fd in channels.items()}
    caught = {name: os.memfd_create(name, os.MFD_CLOEXEC) for name in channels}
    _flush()
    for name, fd in channels.items():
        os.dup2(caught[name], fd, inheritable=True)
    try:
        yield
    finally:
        _flush()
        for name, fd in channels.items():
            os.dup2(saved[name], fd, inheritable=True)
            os.close(saved[name])
            with os.fdopen(caught[name], errors="replace") as file:
                file.seek(0)
                _airflow.log_output(name, file.read(_PRINTED_BYTES).splitlines())


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _serve(control: socket.socket, parsed: _airflow.ParsedFile, walls: Walls) -> None:
    child_signals = ChildSignals()

    def in_child() -> None:
        child_signals.close()
        control.close()

    sources: list[Waitable] = [control, child_signals]
    while True:
        readable = wait_readable(sources)
        if child_signals in readable:
            child_signals.drain()
            _report_deaths(control)
        if control in readable:
            message, fds = messages.receive(control)
            if not isinstance(message, Spawn):
                return
            supervise.fork(fds, parsed, walls, in_child)


def _report_deaths(control: socket.socket) -> None:
    for pid, status in process.reap():
        if status != 0:
            messages.send(control, Reaped(pid, status))
