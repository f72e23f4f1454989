"""``airbridge init``: the control plane's keys."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from airbridge.control_plane.cli import output
from airbridge.control_plane.cli.arguments import Json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: airbridge init /etc/airbridge/secrets --trust-domain example.com")(init)


def init(
    directory: Annotated[Path, typer.Argument(help="The secrets directory to make.", resolve_path=True)],
    trust_domain: Annotated[
        str, typer.Option(help="The SPIFFE trust domain that certificates name workers in.")
    ],
    json: Json = False,
) -> None:
    """Make the control plane's CA and keys. Nothing that is there already is ever overwritten."""
    from airbridge.control_plane.identity import secrets

    secrets.create_all(directory, trust_domain, datetime.now(UTC))
    files = [str(directory / name) for name in secrets.ALL_FILES]
    if json:
        output.emit_json({"secrets_dir": str(directory), "trust_domain": trust_domain, "files": files})
        return
    output.emit_text("\n".join(files))
    output.messages().print(
        f"Next: set [airbridge] secrets_dir = {directory} in Airflow's configuration, run 'airflow db migrate', "
        "then 'airbridge gateway'. Give workers ca.crt, and nothing else of it.",
        markup=False,
        soft_wrap=True,
    )
