"""The zygote as the agent sees it: its process, and the socket to it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from typing import Final

import structlog

from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner import home, messages, walls
from airbridge.edge_worker.runner.messages import Ready, Reaped, Unshared
from airbridge.edge_worker.runner.settings import RunnerSettings

_STOP_SECONDS: Final = 10.0

log = structlog.get_logger()


class Nursery:
    """The zygote's process and the socket to it."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        control: socket.socket,
        on_reaped: Callable[[Reaped], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._child = child
        self._control = control
        self._on_reaped = on_reaped
        self._on_lost = on_lost
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.alive = True
        control.setblocking(False)
        asyncio.get_running_loop().add_reader(control, self._hear)

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._child.pid

    @classmethod
    async def start(
        cls, settings: RunnerSettings, on_reaped: Callable[[Reaped], None], on_lost: Callable[[], None]
    ) -> Nursery:
        """Start a zygote and wait until it has loaded Airflow. Raises `RunnerError`."""
        ours, theirs = messages.socket_pair()
        user = settings.task_user
        limits = (settings.max_templates, settings.template_memory_bytes, settings.parse_ttl_seconds)
        command = [
            sys.executable,
            "-m",
            "airbridge.edge_worker.runner.zygote",
            str(theirs.fileno()),
            settings.worker_name,
        ]
        with theirs:
            child = await asyncio.create_subprocess_exec(
                *command,
                *map(str, limits),
                walls.encode(settings.walls),
                *settings.preload,
                env={**settings.environment(), **home.WITHOUT_ORM},
                cwd=settings.airflow_home,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sys.stderr.fileno(),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                user=user.uid if user else None,
                group=user.gid if user else None,
                extra_groups=[] if user else None,
            )
        zygote = cls(child, ours, on_reaped, on_lost)
        try:
            ready = await asyncio.wait_for(asyncio.shield(zygote._ready), settings.start_timeout_seconds)
        except (TimeoutError, RunnerError) as error:
            await zygote.stop()
            raise RunnerError(
                f"the zygote did not come up: {error or 'timeout'}; its stderr says more"
            ) from error
        log.info("runner.zygote_ready", pid=child.pid, pss_bytes=ready.pss_bytes)
        return zygote

    async def send(self, message: messages.Message, fds: tuple[int, ...]) -> None:
        """Send a message once the socket takes it."""
        while True:
            try:
                messages.send(self._control, message, fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Hang up and wait for the process's end."""
        self._hang_up()
        try:
            await asyncio.wait_for(self._child.wait(), _STOP_SECONDS)
        except TimeoutError:
            self._child.kill()
            await self._child.wait()

    def _hear(self) -> None:
        try:
            message, _fds = messages.receive(self._control)
        except BlockingIOError:
            return
        except OSError:
            message = None
        match message:
            case Ready():
                self._ready.set_result(message)
            case Reaped():
                self._on_reaped(message)
            case Unshared():
                log.info("runner.file_not_shared", path=message.source.dag_rel_path, hazards=message.hazards)
            case None:
                self._hang_up()
                self._on_lost()
                log.warning("runner.zygote_lost", pid=self._child.pid)

    def _hang_up(self) -> None:
        self.alive = False
        if self._control.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()
        if not self._ready.done():
            self._ready.set_exception(RunnerError("it ended while it was starting"))
