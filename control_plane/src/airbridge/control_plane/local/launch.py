"""Start `airbridge up` in a process of its own, and follow platform.json until it is ready."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from airbridge.control_plane.local import state
from airbridge.control_plane.local.exceptions import NotRunning, StartFailed
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.process.privileges import child_setup
from airbridge.control_plane.local.process.supervisor import last_line
from airbridge.control_plane.local.state import ComponentState, PlatformPhase, PlatformState

_POLL_SECONDS = 0.1
_STOP_SECONDS = 60.0


class Launched:
    """Platform that runs in a process of its own."""

    def __init__(self, process: subprocess.Popen[bytes], directory: StateDir) -> None:
        self._process = process
        self._directory = directory

    def await_ready(
        self, changed: Callable[[ComponentState], None], timeout_seconds: float = 300.0
    ) -> PlatformState:
        """Return the platform once it is ready. Raises `StartFailed` with its last output line if it ends first."""
        seen: dict[str, ComponentState] = {}
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            now = self._state()
            for component in now.components if now else ():
                if seen.get(component.name) != component:
                    seen[component.name] = component
                    changed(component)
            if now and now.phase is PlatformPhase.READY:
                return now
            if self._process.poll() is not None:
                raise StartFailed("the platform", self._last_output_line())
            time.sleep(_POLL_SECONDS)
        self.stop()
        raise StartFailed("the platform", f"is not ready after {timeout_seconds:.0f} s", self._output)

    def stop(self) -> None:
        """Stop the platform and wait until it has ended; kill it after a minute."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def _output(self) -> Path:
        return self._directory.log("up")

    def _state(self) -> PlatformState | None:
        try:
            now = state.read(self._directory)
        except NotRunning:
            return None
        return now if now.pid == self._process.pid else None

    def _last_output_line(self) -> str:
        line = last_line(self._output.read_text(errors="replace"))
        return line.removeprefix("error: ") if line else f"ended with status {self._process.returncode}"


def launch(options: Options, cache: Path, environ: Mapping[str, str], *, dies_with_parent: bool) -> Launched:
    """Start the platform in the background; its output goes to ``<dir>/logs/up.log``."""
    directory = StateDir(options.directory)
    directory.make()
    with directory.log("up").open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - no untrusted arguments
            [*_command(options), "--cache-dir", str(cache)],
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # The command line has one thread, and the function makes only system calls: safe between fork and exec.
            preexec_fn=child_setup(signal.SIGTERM) if dies_with_parent else None,  # noqa: PLW1509
        )
    return Launched(process, directory)


def _command(options: Options) -> list[str]:
    words = [sys.executable, "-m", "airbridge.control_plane.cli", "up", "--dir", str(options.directory)]
    if options.terraform:
        words += ["--from-terraform", "--terraform-dir", str(options.terraform)]
    else:
        for region in options.regions:
            words += ["--region", region.word]
    words += ["--workers-per-region", str(options.workers_per_region)]
    words += ["--schedulers", str(options.schedulers), "--slots", str(options.slots)]
    if options.dags:
        words += ["--dags", str(options.dags)]
    if options.teams:
        words += ["--teams", str(options.teams)]
    if options.residency:
        words += ["--residency", str(options.residency)]
    if options.port:
        words += ["--port", str(options.port)]
    for name, value in options.airflow.items():
        words += ["--airflow", f"{name}={value}"]
    for name, value in options.worker_env.items():
        words += ["--worker-env", f"{name}={value}"]
    return words
