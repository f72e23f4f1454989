"""Client of the zygote: its process, and the socket to it."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections.abc import Callable
from typing import Final

import structlog

from airbridge.core.task_options import Options
from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner import airflow_home, messages
from airbridge.edge_worker.runner.messages import Admit, Ready, Reaped, Unshared
from airbridge.edge_worker.runner.sandbox.sandbox import encode
from airbridge.edge_worker.runner.settings import RunnerSettings

_STOP_SECONDS: Final = 10.0

# Descriptors that come with an `Admit`.
_ADMITTED: Final = 2

log = structlog.get_logger()


#: Called with a new template's process id, its pidfd, and the socket on which it waits; it closes both.
OnTemplate = Callable[[int, int, socket.socket], None]


class ZygoteClient:
    """The zygote's process and the socket to it."""

    def __init__(
        self,
        child: asyncio.subprocess.Process,
        control: socket.socket,
        began_as: tuple[Options, RunnerSettings],
        on_reaped: Callable[[Reaped], None],
        on_lost: Callable[[], None],
        *,
        on_template: OnTemplate,
    ) -> None:
        self._child = child
        self._control = control
        #: Options of Airflow's configuration and settings that it was started with.
        self.began_as = began_as
        #: Tasks that need it: spawned, and not ended yet.
        self.users = 0
        self._on_reaped = on_reaped
        self._on_lost = on_lost
        self._on_template = on_template
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self.alive = True
        control.setblocking(False)
        asyncio.get_running_loop().add_reader(control, self._on_readable)

    @property
    def pid(self) -> int:
        """The zygote's process id."""
        return self._child.pid

    @classmethod
    async def start(
        cls,
        settings: RunnerSettings,
        options: Options,
        on_reaped: Callable[[Reaped], None],
        on_lost: Callable[[], None],
        *,
        on_template: OnTemplate,
    ) -> ZygoteClient:
        """Start a zygote and wait until it has loaded Airflow. Raises `RunnerError`.

        The airflow.cfg in the settings' `airflow_home` must have the `options` already.
        """
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
                encode(settings.sandbox),
                *settings.preload,
                env={**settings.environment(), **airflow_home.WITHOUT_ORM},
                cwd=settings.airflow_home,
                stdin=asyncio.subprocess.DEVNULL,
                # The agent's stdout is for the results of commands.
                stdout=sys.stderr.fileno(),
                pass_fds=[theirs.fileno()],
                # Signals of a terminal are for the agent, which ends its tasks in order.
                start_new_session=True,
                user=user.uid if user else None,
                group=user.gid if user else None,
                extra_groups=[] if user else None,
            )
        zygote = cls(child, ours, (options, settings), on_reaped, on_lost, on_template=on_template)
        try:
            ready = await asyncio.wait_for(asyncio.shield(zygote._ready), settings.start_timeout_seconds)
        except (TimeoutError, RunnerError) as error:
            await zygote.stop()
            raise RunnerError(f"the zygote did not start: {error or 'timeout'}; see its stderr") from error
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

    def _on_readable(self) -> None:
        try:
            message, fds = messages.receive(self._control, _ADMITTED)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.EBADMSG:
                # One message is lost; to hang up would kill every task.
                log.warning("runner.invalid_message", pid=self._child.pid, detail=str(error))
                return
            message = None
        match message:
            case Ready():
                self._ready.set_result(message)
            case Admit() if len(fds) == _ADMITTED:
                sock, pidfd = fds
                self._on_template(message.pid, pidfd, socket.socket(fileno=sock))
            case Reaped():
                self._on_reaped(message)
            case Unshared():
                log.info(
                    "runner.file_not_shared", path=message.source.dag_rel_path, violations=message.violations
                )
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
