"""``airbridge revocation``: what is refused from the next request on."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import arguments, connection, output
from airbridge.control_plane.cli.arguments import Directory, Json
from airbridge.control_plane.cli.connection import CaFile, TokenFile, Url

_COLUMNS = ("kind", "value", "reason", "by", "at")
Kind = Annotated[str, typer.Argument(help="worker, pool, certificate or issuer (an issuing CA).")]
Value = Annotated[
    str,
    typer.Argument(
        help="A worker's id; region/pool; a certificate's SHA-256 in hex; a CA's key id ('airbridge ca show')."
    ),
]


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(
        help="Refuse a worker, pool, certificate or CA.", no_args_is_help=True, rich_markup_mode="rich"
    )
    group.command(
        epilog='Examples: airbridge revocation add pool eu-west-1/gpu --reason "image compromised";  '
        'airbridge revocation add issuer 5b0c... --reason "key leaked"'
    )(add)
    group.command("list", epilog="Example: airbridge revocation list --json")(list_revocations)
    group.command(epilog="Example: airbridge revocation remove pool eu-west-1/gpu")(remove)
    return group


def add(  # noqa: PLR0917 - typer fills them by name
    kind: Kind,
    value: Value,
    reason: Annotated[str, typer.Option(help="Why; callers and the audit trail see it.")],
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Refuse it from its next request on, on every gateway.

    Workers of a revoked issuer may come back by their join method, under the CA in use; all others stop.
    """
    with connection.client(directory, url, token_file, ca_file) as client:
        done = client.post("revocations", {"kind": kind, "value": value, "reason": reason})
    _show(done, "revoked", json)


def list_revocations(
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """List what is revoked, newest first."""
    with connection.client(directory, url, token_file, ca_file) as client:
        found = client.get("revocations")["revocations"]
    if json:
        output.emit_json(found)
    else:
        output.results().print(output.table(None, _COLUMNS, map(_row, found)))


def remove(  # noqa: PLR0917 - typer fills them by name
    kind: Kind,
    value: Value,
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Take a revocation back."""
    with connection.client(directory, url, token_file, ca_file) as client:
        done = client.delete("revocations", kind=kind, value=value)
    _show(done, "not revoked any more", json)


def _show(done: dict[str, Any], what: str, json: bool) -> None:
    if json:
        output.emit_json(done)
    else:
        output.emit_text(f"{done['kind']} {done['value']}: {what}")


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["kind"], row["value"], row["reason"], row["actor"], row["revoked_at"])
