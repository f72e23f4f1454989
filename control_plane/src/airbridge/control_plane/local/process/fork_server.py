"""Fork server: imports once what the platform's Python processes have in common, and forks them.

Each of these processes would spend more than a second of CPU time on the same third-party packages. Only packages that
read no configuration are preloaded, nothing of Airflow or AirBridge: every process still reads its own configuration
itself, and the fork server has no secret that a fork could inherit.

Started with ``python -m airbridge.control_plane.local.process.fork_server FD SUPERVISOR``. Linux only.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

READY: Final = b"ready"
REQUEST_BYTES: Final = 200_000
_ADOPTION_SECONDS: Final = 5.0

# Imported by most processes of the control plane, or by some of them and the workers. Without fsspec
# and universal_pathlib, which read files of HOME when they are imported: the workers have a home of their own.
PRELOADED: Final = tuple(
    """
    alembic.config asgiref.sync asyncpg cadwyn certifi colorlog cron_descriptor croniter cryptography.x509 dill
    fastapi.middleware.cors fastapi.middleware.gzip httpx importlib_metadata jinja2.nativetypes jsonschema jwt
    lazy_object_proxy libcst lockfile.pidlockfile logging.config logging.handlers msgspec packaging.requirements
    pathspec pendulum pluggy psutil psycopg2 pydantic pytz referencing rich_argparse setproctitle smtplib
    sqlalchemy.dialects.mysql sqlalchemy.dialects.postgresql sqlalchemy.ext.associationproxy sqlalchemy.ext.asyncio
    sqlalchemy.orm sqlalchemy_jsonfield sqlalchemy_utils starlette.staticfiles structlog svcs tabulate tenacity
    termcolor typer uuid6 yaml boto3 httptools prometheus_client requests retryhttp s3transfer urllib3.contrib
    uvicorn.main uvloop websockets
    """.split()  # noqa: SIM905 - a list would take a line for each
)


@dataclass(frozen=True)
class Order:
    """A process to fork: a module that is run as ``python -m``. The descriptor of its log is sent with it."""

    module: str
    arguments: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    death_signal: int

    def encode(self) -> bytes:
        """Return the order as a message."""
        return json.dumps({**asdict(self), "env": dict(self.env)}).encode()

    @classmethod
    def decode(cls, message: bytes) -> Self:
        """Read a message."""
        fields = json.loads(message)
        return cls(**{**fields, "arguments": tuple(fields["arguments"])})


def main() -> None:
    """Import, report that, and fork what the supervisor orders, until it hangs up."""
    control, supervisor = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    preload()
    # Collections of garbage would write to the shared objects' headers, and so copy their pages in every process.
    gc.collect()
    gc.freeze()
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise SystemExit("error: a preloaded package has started a thread, and a fork would not have it")
    with suppress(BrokenPipeError):  # the supervisor has given up
        control.send(READY)
    order = _serve(control, supervisor)
    control.close()
    if order is not None:
        runpy.run_module(order.module, run_name="__main__", alter_sys=True)


def preload() -> None:
    """Import the packages. A missing one is left to the processes that need it."""
    for name in PRELOADED:
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)


def _serve(control: socket.socket, supervisor: int) -> Order | None:
    """Fork a process for each order; return its order in the process, and None in the server once it is not needed."""
    while True:
        message, descriptors, _flags, _address = socket.recv_fds(control, REQUEST_BYTES, 1)
        if not message:
            return None
        # Forked twice: the supervisor adopts the orphan, and so is the parent of a process that it did not fork.
        between = os.fork()
        if between == 0:
            if os.fork() != 0:
                os._exit(0)
            return _become(Order.decode(message), descriptors[0], control, supervisor)
        os.waitpid(between, 0)
        os.close(descriptors[0])


def _become(order: Order, log: int, control: socket.socket, supervisor: int) -> Order:
    """Give this process what an exec would have given it, and report its id to the supervisor."""
    from setproctitle import setproctitle

    from airbridge.control_plane.local.process.privileges import die_with

    os.setsid()
    _await_adoption(supervisor)
    die_with(supervisor, order.death_signal)
    if order.cwd is not None:
        os.chdir(order.cwd)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.argv = [order.module, *order.arguments]
    sys.orig_argv = [sys.executable, "-m", *sys.argv]
    setproctitle(" ".join(sys.orig_argv))  # before the environment, whose memory it takes, is changed
    os.environ.clear()
    os.environ.update(order.env)
    sys.path[0] = str(Path.cwd())
    try:
        control.send(str(os.getpid()).encode())
    except OSError:  # the supervisor does not wait for this process any more
        os._exit(1)
    return order


def _await_adoption(supervisor: int) -> None:
    """Wait until the supervisor is this process's parent."""
    deadline = time.monotonic() + _ADOPTION_SECONDS
    while os.getppid() != supervisor:
        if time.monotonic() > deadline:
            os._exit(1)
        time.sleep(0.001)


if __name__ == "__main__":
    main()
