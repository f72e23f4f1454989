"""``airbridge init``: create the control plane's CA and keys."""

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
    directory: Annotated[Path, typer.Argument(help="The secrets directory to create.", resolve_path=True)],
    trust_domain: Annotated[str, typer.Option(help="The SPIFFE trust domain of workers' certificates.")],
    root_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory for the root CA: a disk that is taken offline afterwards.",
            show_default="offline-root in the secrets directory",
            resolve_path=True,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Create the control plane's CA (a root and an issuing CA) and keys. Existing files are never overwritten."""
    from airbridge.control_plane.identity import secrets

    secrets.create_all(directory, trust_domain, datetime.now(UTC), root_dir)
    root = root_dir or directory / secrets.ROOT_DIRECTORY
    files = [str(directory / name) for name in secrets.ALL_FILES]
    if json:
        output.emit_json(
            {
                "secrets_dir": str(directory),
                "trust_domain": trust_domain,
                "root_dir": str(root),
                "files": files,
            }
        )
        return
    output.emit_text("\n".join(files))
    output.messages().print(
        f"Next: take {root} offline: only 'airbridge ca rotate' needs it. Then set [airbridge] secrets_dir = {directory} in Airflow's configuration, run 'airflow db migrate', "
        "then 'airbridge gateway'. Give workers ca.crt and no other file of it.",
        markup=False,
        soft_wrap=True,
    )
