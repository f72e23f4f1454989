"""``airbridge dags``: check DAG code, and publish it from a folder to every region."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.control_plane.cli.exit_codes import Exit
from airbridge.control_plane.cli.progress import PushDisplay

if TYPE_CHECKING:
    from airbridge.executor.bundles.parsing import ParseReport


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(
        cls=connection.ConnectedGroup, help="Deliver DAG code.", no_args_is_help=True, rich_markup_mode="rich"
    )
    group.callback()(_group)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge dags push ./dags --bundle pushed"
    )(push)
    group.command(epilog="Example: airbridge dags check ./dags --regions-file regions.toml")(check)
    return group


def _group() -> None:
    """Deliver DAG code."""


def push(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="The folder of DAG files.", exists=True, file_okay=False, resolve_path=True)
    ],
    bundle: Annotated[str, typer.Option(help="The bundle to publish to.")] = "pushed",
    json: Json = False,
) -> None:
    """Publish a folder of DAG files to every region. Refused if a file does not parse; the previous version stays current."""
    from airbridge.control_plane import dags

    with (
        connection.client(context) as client,
        PushDisplay(output.messages(), str(folder), bundle) as display,
    ):
        pushed = dags.push(client, folder, bundle, display)
    if json:
        output.emit_json(asdict(pushed))
    else:
        checked = "" if pushed.check_seconds is None else f", checked in {pushed.check_seconds:.1f} s"
        output.emit_text(f"{pushed.bundle} {pushed.version} ({pushed.files} files{checked})")


def check(
    folder: Annotated[
        Path, typer.Argument(help="The folder of DAG files.", exists=True, file_okay=False, resolve_path=True)
    ],
    regions_file: Annotated[
        Path | None,
        typer.Option(
            help="Region catalogue that the tasks' queues and hints are checked against.",
            show_default="none: only how hints are written is checked",
            resolve_path=True,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Check a folder of DAG files as a push does, without a platform: for CI jobs. Exit status 1 if it would be refused.

    Each fault is a line with file, line, error and remedy. DAG ids of other bundles are known to the platform alone.
    """
    from airbridge.control_plane import dags

    report = dags.check(folder, regions_file)
    if json:
        output.emit_json(
            {
                "ok": not report.failures,
                "dags": sorted(report.dags),
                "failures": [asdict(failure) for failure in report.failures],
                "unjudged": list(report.unjudged),
            }
        )
    else:
        _print_report(report)
    raise typer.Exit(Exit.FAILED if report.failures else Exit.OK)


def _print_report(report: ParseReport) -> None:
    for failure in report.failures:
        output.emit_text(str(failure))
    for file in report.unjudged:
        output.messages().print(
            f"{file}: not checked: it reads a variable or a connection while it is parsed", markup=False
        )
    if not report.failures:
        output.emit_text(
            f"{len(report.dags)} DAGs in {len(set(report.files.values()))} files: no fault found"
        )
