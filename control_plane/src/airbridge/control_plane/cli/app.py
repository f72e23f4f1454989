"""Puts the commands together and turns errors into messages and exit statuses."""

from __future__ import annotations

import typer

from airbridge.control_plane.cli import (
    audit,
    dags,
    gateway,
    init,
    keys,
    local,
    output,
    policy,
    revocations,
    status,
    tokens,
    trace,
    workers,
)
from airbridge.control_plane.cli.exits import Exit, exit_for
from airbridge.executor.exceptions import AirBridgeError

_HELP = """Remote execution for Apache Airflow: one control plane, workers near the data.

Results go to stdout, progress to stderr. Exit status: 0 done, 1 failed, 2 wrong usage or setting,
3 running and must not be (or the reverse), 4 unreachable, 5 refused."""


def build() -> typer.Typer:
    """Return the command line."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    for module in (init, local, status, trace, gateway, audit):
        module.register(app)
    app.add_typer(workers.build(), name="worker")
    app.add_typer(tokens.build(), name="token")
    app.add_typer(dags.build(), name="dags")
    app.add_typer(policy.build(), name="policy")
    app.add_typer(revocations.build(), name="revocation")
    app.add_typer(keys.build_ca(), name="ca")
    app.add_typer(keys.build_keys(), name="keys")
    return app


def main() -> None:
    """Run the command line."""
    try:
        build()(prog_name="airbridge")
    except AirBridgeError as error:
        output.messages().print(f"error: {error}", markup=False, soft_wrap=True)
        raise SystemExit(exit_for(error)) from error
    except KeyboardInterrupt as error:
        raise SystemExit(Exit.FAILED) from error
