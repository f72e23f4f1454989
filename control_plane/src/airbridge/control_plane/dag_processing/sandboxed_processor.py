"""Airflow's `DagFileProcessorProcess` (3.0.4) over a zygote: the subclass that `_airflow.install` puts in its place.

A module of its own because its base class needs Airflow, which the zygote's client must not import.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog
from airflow.dag_processing.processor import DagFileParsingResult, DagFileProcessorProcess
from airflow.sdk.exceptions import ErrorType
from airflow.sdk.execution_time.comms import (
    DeleteVariable,
    ErrorResponse,
    GetConnection,
    GetVariable,
    PutVariable,
    _RequestFrame,
)
from airflow.sdk.execution_time.supervisor import forward_to_log, process_log_messages_from_subprocess

from airbridge.control_plane.dag_processing.serialized_dags import SerializedDagCheck
from airbridge.control_plane.dag_processing.zygote_client import ZygoteClient
from airbridge.core.code import environment
from airbridge.core.exceptions import BundleError
from airbridge.core.sandbox.bounded_reads import FrameReader, LineReader

log = structlog.get_logger(__name__)

# Most that a process may send as one message; the largest DAGs known are a tenth of it.
_FRAME_BYTES: Final = 256 * 1024 * 1024
# Of a line that it prints or logs; a longer one is split.
_LINE_BYTES: Final = 1024 * 1024

_REQUESTS: Final = msgspec.msgpack.Decoder(_RequestFrame)


@dataclass(frozen=True)
class Rules:
    """Names that DAG files may read while they are parsed (as patterns), and the check of the DAGs that may be stored."""

    variables: Sequence[str]
    connections: Sequence[str]
    check: SerializedDagCheck


class SandboxedProcessor(DagFileProcessorProcess):  # type: ignore[misc] # Airflow publishes no types
    """Parses a DAG file in a process without secrets, which `zygote` forks; `rules` judge its results and requests."""

    zygote: ZygoteClient
    rules: Rules

    @classmethod
    def start(
        cls,
        *,
        path: Any,
        bundle_path: Path,
        callbacks: list[Any],
        client: Any,
        logger: Any,
        **kwargs: Any,
    ) -> Any:
        """Start as `WatchedSubprocess.start` does, with a process of the zygote's in place of a fork of this one."""
        ours, theirs = zip(*(socket.socketpair() for _ in range(4)), strict=True)
        try:
            packages = _packages_of(bundle_path)
            started = cls.zygote.spawn(
                os.fspath(path), os.fspath(bundle_path), [each.fileno() for each in theirs], packages
            )
        except BaseException:
            for each in ours:
                each.close()
            raise
        finally:
            for each in theirs:
                each.close()
        requests, stdout, stderr, logs = ours
        proc = cls(
            pid=started.pid, stdin=requests, process=started, process_log=logger,
            start_time=time.monotonic(), client=client, **kwargs,
        )  # fmt: skip
        proc._register_pipe_readers(stdout=stdout, stderr=stderr, requests=requests, logs=logs)
        proc._parsed = (os.fspath(path), os.fspath(bundle_path))
        try:
            proc._on_child_started(callbacks, path, bundle_path)
        except OSError as error:  # it has died already, which is handled like any other end
            logger.warning("the parser ended before it began", error=str(error))
        return proc

    def _register_pipe_readers(self, **sockets: socket.socket) -> None:
        """Register Airflow's handlers behind bounded readers, so that whatever the process writes can only end itself."""
        super()._register_pipe_readers(**sockets)
        requests = self.handle_requests(log)
        next(requests)
        readers: dict[str, Callable[[socket.socket], bool]] = {
            "requests": FrameReader(lambda frame: requests.send(_REQUESTS.decode(frame)), _FRAME_BYTES),
            "logs": _lines(process_log_messages_from_subprocess((self.process_log,))),
            "stdout": _lines(forward_to_log((self.process_log,), chan="stdout", level=logging.INFO)),
            "stderr": _lines(forward_to_log((self.process_log,), chan="stderr", level=logging.ERROR)),
        }
        for name, reader in readers.items():
            handler = (self._guarded(reader), self._on_socket_closed)
            self.selector.modify(sockets[name], selectors.EVENT_READ, handler)

    def _guarded(self, handler: Callable[[Any], bool]) -> Callable[[Any], bool]:
        def guarded(sock: Any) -> bool:
            try:
                return handler(sock)
            except (BrokenPipeError, ConnectionResetError):
                return False
            except Exception as error:  # noqa: BLE001 - a DAG file must not end the dag-processor
                log.warning("dag_processing.nonsense", pid=self.pid, error=repr(error)[:500])
                self._process.send_signal(signal.SIGKILL)
                return False

        return guarded

    def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
        """Judge a result before it is kept, and a request before it is answered."""
        if isinstance(msg, DagFileParsingResult):
            self.rules.check.filter(msg, *self._parsed)
            super()._handle_request(msg, log, req_id)
            return
        if isinstance(msg, GetVariable) and _matches(msg.key, self.rules.variables):
            super()._handle_request(msg, log, req_id)
            return
        if isinstance(msg, GetConnection) and _matches(msg.conn_id, self.rules.connections):
            super()._handle_request(msg, log, req_id)
            return
        detail = {"message": _refusal(msg)}
        self.send_msg(
            None, request_id=req_id, error=ErrorResponse(error=ErrorType.GENERIC_ERROR, detail=detail)
        )


def _packages_of(bundle_path: Path) -> Path | None:
    """Return the bundle's unpacked environment. Without it, its DAG files fail with the modules that they miss."""
    try:
        return environment.beside(Path(bundle_path))
    except (BundleError, OSError) as error:
        log.warning("dag_processing.no_environment", bundle_path=str(bundle_path), error=str(error))
        return None


def processor_class(zygote: ZygoteClient, rules: Rules) -> type[SandboxedProcessor]:
    """Return the class bound to a zygote and rules: Airflow instantiates it by calling `start` on the class."""
    return type("SandboxedProcessor", (SandboxedProcessor,), {"zygote": zygote, "rules": rules})


def _refusal(msg: Any) -> str:
    if isinstance(msg, GetVariable):
        return f"variable {msg.key!r} cannot be read while a DAG file is parsed: name it in [airbridge] parse_variables"
    if isinstance(msg, GetConnection):
        return f"connection {msg.conn_id!r} cannot be read while a DAG file is parsed: name it in [airbridge] parse_connections"
    if isinstance(msg, PutVariable | DeleteVariable):
        return f"variable {msg.key!r} cannot be changed while a DAG file is parsed"
    return f"{type(msg).__name__} is not answered while a DAG file is parsed"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _lines(handler: Generator[None, Any, None]) -> LineReader:
    next(handler)
    return LineReader(handler.send, _LINE_BYTES)
