"""``airbridge dags``: DAG code, from a folder to every region."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from airbridge.control_plane.cli import arguments, connection, output
from airbridge.control_plane.cli.arguments import Directory, Json
from airbridge.control_plane.cli.connection import CaFile, TokenFile, Url


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(help="Deliver DAG code.", no_args_is_help=True, rich_markup_mode="rich")
    group.callback()(_group)
    group.command(epilog="Example: airbridge dags push ./dags --bundle pushed")(push)
    return group


def _group() -> None:
    """Deliver DAG code."""


def push(  # noqa: PLR0917 - typer fills them by name
    folder: Annotated[
        Path, typer.Argument(help="The folder of DAG files.", exists=True, file_okay=False, resolve_path=True)
    ],
    bundle: Annotated[
        str, typer.Option(help="The bundle that it becomes the current version of.")
    ] = "pushed",
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Publish a folder of DAG files to every region. One that does not parse is refused; the last one stays current."""
    from airbridge.control_plane import dags

    output.messages().print(f"pushing {folder} to bundle {bundle}", markup=False)
    with connection.client(directory, url, token_file, ca_file) as client:
        pushed = dags.push(client, folder, bundle)
    if json:
        output.emit_json(asdict(pushed))
    else:
        output.emit_text(f"{pushed.bundle} {pushed.version} ({pushed.files} files)")
