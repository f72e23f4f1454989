"""Assemble the commands; turn errors into messages and exit statuses."""

from __future__ import annotations

import logging
from importlib import metadata
from typing import Annotated, Final

import click
import typer
import typer.main

from airbridge.control_plane.cli import output
from airbridge.control_plane.cli.commands import (
    approvals,
    audit,
    dags,
    environments,
    init,
    keys,
    local,
    login,
    policy,
    revocations,
    services,
    tokens,
    workers,
)
from airbridge.control_plane.cli.commands.views import status, trace, usage
from airbridge.control_plane.cli.exit_codes import Exit, exit_for
from airbridge.control_plane.exceptions import Proposed
from airbridge.core.command_tree import printable
from airbridge.core.exceptions import AirBridgeError

_HELP = """Remote execution for Apache Airflow: one control plane, workers near the data.

Results go to stdout, progress to stderr. Exit status: 0 done, 1 failed, 2 wrong usage or setting,
3 platform in the wrong state (running or not running), 4 unreachable, 5 refused, 6 proposed: a second operator must approve."""


# Commands whose stdout is their log, as that of a service is.
_SERVICES: Final = frozenset({"gateway", "dag-processor"})
_DISTRIBUTION: Final = "airbridge-control-plane"


def _print_version(value: bool) -> None:
    if value:
        output.emit_text(
            f"airbridge {metadata.version(_DISTRIBUTION)} (Apache Airflow {metadata.version('apache-airflow-core')})"
        )
        raise typer.Exit


def build() -> typer.Typer:
    """Return the Typer application of ``airbridge``."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_options)
    for module in (init, local, login, status, trace, usage, services, audit):
        module.register(app)
    app.add_typer(workers.build(), name="worker")
    app.add_typer(tokens.build(), name="token")
    app.add_typer(dags.build(), name="dags")
    app.add_typer(environments.build(), name="env")
    app.add_typer(policy.build(), name="policy")
    app.add_typer(revocations.build(), name="revocation")
    app.add_typer(approvals.build(), name="approvals")
    app.add_typer(keys.build_ca(), name="ca")
    app.add_typer(keys.build_keys(), name="keys")
    return app


def command() -> click.Command:
    """Return the command of ``airbridge``."""
    built: click.Command = printable(typer.main.get_command(build()))
    return built


def _options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback acts on it
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in _SERVICES:
        context.with_resource(output.stdout_for_results())


def main() -> None:
    """Run the command line."""
    # A line for each request would bury the progress; Airflow's configuration, where it is loaded, shows them.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        command()(prog_name="airbridge")
    except AirBridgeError as error:
        label = "" if isinstance(error, Proposed) else "error: "
        output.messages().print(f"{label}{error}", markup=False, soft_wrap=True)
        raise SystemExit(exit_for(error)) from error
    except KeyboardInterrupt as error:
        raise SystemExit(Exit.FAILED) from error
