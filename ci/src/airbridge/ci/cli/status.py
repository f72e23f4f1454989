"""`release status`: which release is where."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from airbridge.ci.checkout import Checkout
from airbridge.ci.cli import exit_codes, output
from airbridge.ci.cli.releases import Ca, Root, TokenFile, control_plane
from airbridge.ci.rollout.rules import Rules
from airbridge.ci.rollout.status import Row, Status, of_all

app = typer.Typer(help="Releases and where they are.", no_args_is_help=True)


@app.callback()
def _release() -> None:
    """Releases and where they are."""


@app.command()
def status(
    environment: Annotated[
        str | None, typer.Argument(help="the environment; without one, what is written for all of them")
    ] = None,
    *,
    root: Root = Path(),
    url: Annotated[
        str | None,
        typer.Option("--url", help="the operators' API of its control plane: shows what workers run, too"),
    ] = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    as_json_: Annotated[bool, typer.Option("--json", help="the result as JSON")] = False,
) -> None:
    """Show which digest is where, by region and pool, of which release, signed by whom, since when.

    Exit 3 if a release is signed by nobody, or if a worker runs an image of no release that its environment was on.

    Example: airbridge-ci release status prod --url https://gateway.prod.example.com:8444 --token-file token
    """
    rules = Rules(Checkout.find(root.resolve()), datetime.now(tz=UTC))
    found = Status(rules)
    if url is not None and environment is None:
        raise typer.BadParameter("--url goes with an environment")
    health = control_plane(url, token_file, ca, None, None)
    if environment is None:
        rows = of_all(found, rules.plan().order())
    else:
        rows = list(found.running(environment, health.workers()) if health else found.written(environment))
    _show(rows, as_json_)
    if any(row.state == "unknown" or row.signed_by.startswith("nobody") for row in rows):
        raise typer.Exit(exit_codes.DISAGREEMENT)


def _show(rows: list[Row], as_json_: bool) -> None:
    if as_json_:
        output.result_json([{**asdict(row), "since": row.since and row.since.isoformat()} for row in rows])
        return
    columns = ("environment", "region", "pool", "digest", "commit", "signed by", "since", "workers", "state")
    output.result_table(
        columns,
        [
            (
                row.environment,
                row.region,
                row.pool,
                row.digest[:19],
                row.revision[:12],
                row.signed_by,
                f"{row.since:%Y-%m-%d %H:%M}" if row.since else "-",
                "-" if row.workers is None else str(row.workers),
                row.state,
            )
            for row in rows
        ],
    )
