"""`airbridge-worker`: run a worker, ask a running one for its status, check a host before there is one."""

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

from airbridge.edge_worker import doctor as checks
from airbridge.edge_worker import health
from airbridge.edge_worker.agent import Agent, ExitCode
from airbridge.edge_worker.exceptions import RunnerError, SettingsError
from airbridge.edge_worker.parts import real_parts
from airbridge.edge_worker.settings import WorkerSettings, load
from airbridge.executor import protection

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
    """Run the worker until it is told to stop.

    SIGTERM drains: what runs is finished, what has not started goes back. A second one stops hard.

    Exit codes: 0 drained, 1 stopped hard, 2 a setting is wrong, 3 enrolment refused or revoked, 75 drained with results
    or logs left in state_dir for the next start.

    Example: airbridge-worker run --config /etc/airbridge/worker.toml
    """
    configure_logging(as_json=as_json or not sys.stderr.isatty())
    protection.harden()
    settings = _settings(config)
    try:
        code = asyncio.run(_run(settings))
    except (SettingsError, RunnerError) as error:
        _fail(str(error))
    raise typer.Exit(int(code))


@app.command()
def status(config: Config = None, as_json: AsJson = False) -> None:
    """Show what the worker on this host is doing.

    Exit codes: 0 it answers, 2 none runs with this state_dir.

    Example: airbridge-worker status --json
    """
    settings = _settings(config)
    try:
        found = health.ask(settings.status_socket)
    except SettingsError as error:
        _fail(str(error))
    typer.echo(json.dumps(found, indent=2) if as_json else _as_text(found))


@app.command()
def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """Check this host: settings, paths, disk, clock, the gateway, protections, secrets that do not belong here.

    Exit codes: 0 all is well, 1 something is wrong.

    Example: airbridge-worker doctor
    """
    configure_logging(as_json=False, level=logging.ERROR)
    findings = checks.examine(config)
    if as_json:
        typer.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        for finding in findings:
            typer.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.detail}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 1)


def main() -> None:
    """Entry point of `airbridge-worker`."""
    app()


async def _run(settings: WorkerSettings) -> ExitCode:
    agent = Agent(settings, real_parts(settings))
    loop = asyncio.get_running_loop()
    asked = 0

    def on_signal() -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
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


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(int(ExitCode.BAD_SETTINGS))


def _as_text(found: dict[str, Any]) -> str:
    link = "up" if found["link"]["up"] else f"down for {found['link']['silent_seconds']} s"
    slots = found["slots"]
    lines = [
        f"{found['worker']} ({found['pool']}@{found['region']}): {found['mode']}, link {link}",
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
