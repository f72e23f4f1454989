"""The command `airbridge-worker`: run a worker, show the status of a running one, check a host."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import structlog
import typer
import typer.main

from airbridge.core.command_tree import printable
from airbridge.core.sandbox import hardening
from airbridge.edge_worker.agent import Agent, ExitCode
from airbridge.edge_worker.exceptions import IdentityError, RunnerError, SettingsError, StartError
from airbridge.edge_worker.gateway_client import bound_key
from airbridge.edge_worker.ops import doctor as checks
from airbridge.edge_worker.ops import health
from airbridge.edge_worker.settings import WorkerSettings, load
from airbridge.edge_worker.wiring import real_components

app = typer.Typer(help="AirBridge's edge worker.", no_args_is_help=True, add_completion=False)

Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of settings; AIRBRIDGE_WORKER_* variables fill in the rest."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@app.command()
def run(
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Log JSON lines.")] = False,
) -> None:
    """Run the worker until it is stopped by a signal.

    SIGTERM drains: running tasks finish, tasks that have not started are released. A second signal stops hard.

    Exit codes: 0 drained, 1 stopped hard, or the host did not let it start (disk, memory, a lock), 2 a setting is wrong,
    3 enrolment refused or revoked, 75 drained with results or logs left in state_dir for the next start.

    Example: airbridge-worker run --config /etc/airbridge/worker.toml
    """
    configure_logging(as_json=as_json or not sys.stderr.isatty())
    # Before any secret is in memory.
    hardening.harden()
    settings = _settings(config)
    try:
        code = asyncio.run(_run(settings))
    except SettingsError as error:
        _fail(str(error))
    except (StartError, RunnerError) as error:
        # Not 2, after which a service manager would never start the worker again.
        _fail(str(error), ExitCode.HARD_STOP)
    raise typer.Exit(int(code))


@app.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Show the status of the worker on this host.

    Exit codes: 0 the worker answered, 2 no worker runs with this state_dir.

    Example: airbridge-worker status --json
    """
    settings = _settings(config)
    try:
        found = health.read_status(settings.status_socket)
    except SettingsError as error:
        _fail(str(error))
    typer.echo(json.dumps(found, indent=2) if as_json else _as_text(found))


@app.command()
def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """Check this host: settings, paths, disk, clock, gateway, queue, buckets, sandbox, misplaced secrets.

    Exit codes: 0 all checks passed, 1 a check failed.

    Example: airbridge-worker doctor
    """
    configure_logging(as_json=False, level=logging.ERROR)
    results = checks.run_checks(config)
    if as_json:
        typer.echo(json.dumps([result.as_dict() for result in results], indent=2))
    else:
        for result in results:
            typer.echo(f"{'ok  ' if result.ok else 'FAIL'}  {result.check}: {result.detail}")
    raise typer.Exit(0 if all(result.ok for result in results) else 1)


@app.command()
def key(config: Config = None) -> None:
    """Print this host's public key, which an operator binds to the worker's name (join_method 'bound_key').

    The key is made if there is none. It stays in state_dir, of which there must be no copy: two hosts with one key stop each other.

    Exit codes: 0 printed, 2 a setting is wrong or state_dir cannot be written.

    Example: airbridge-worker key --config /etc/airbridge/worker.toml
    """
    settings = _settings(config)
    try:
        typer.echo(bound_key.public_key_of(settings, make=True))
    except IdentityError as error:
        _fail(str(error))


def main() -> None:
    """Entry point of `airbridge-worker`."""
    printable(typer.main.get_command(app))()


async def _run(settings: WorkerSettings) -> ExitCode:
    agent = Agent(settings, real_components(settings))
    loop = asyncio.get_running_loop()
    signals = 0

    def on_signal() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            agent.drain()
        else:
            agent.hard_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return await agent.run()


def configure_logging(*, as_json: bool, level: int = logging.INFO) -> None:
    """Send structlog events to stderr."""
    renderer: Callable[..., Any] = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _settings(config: Path | None) -> WorkerSettings:
    try:
        return load(config)
    except SettingsError as error:
        _fail(str(error))


def _fail(message: str, code: ExitCode = ExitCode.BAD_SETTINGS) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(int(code))


def _as_text(found: dict[str, Any]) -> str:
    link = "up" if found["link"]["up"] else f"down for {found['link']['silent_seconds']} s"
    slots = found["slots"]
    queue_error = found["queue"]["error"]
    lines = [
        f"{found['worker']} ({found['pool']}@{found['region']}): {found['mode']}, link {link}",
        *([f"cannot receive from its queue: {queue_error}"] if queue_error else []),
        f"slots {slots['used']}/{slots['total']}",
        f"to report: {found['journal']['pending']} records, {found['logs']['pending']} logs",
    ]
    lines += [
        f"  {task['dag_id']}.{task['task_id']} {task['run_id']} [{task['state']}]" for task in found["tasks"]
    ]
    lines += [f"  journal was damaged: {reason}" for reason in found["journal"]["damages"]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
