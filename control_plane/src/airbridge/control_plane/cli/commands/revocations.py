"""``airbridge revocation``: revoke workers, pools, certificates and CAs immediately."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.cli.arguments import BreakGlass, Json

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
        cls=connection.ConnectedGroup,
        help="Revoke a worker, pool, certificate or CA.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command(
        cls=connection.ConnectedCommand,
        epilog='Examples: airbridge revocation add pool eu-west-1/gpu --reason "image compromised";  '
        'airbridge revocation add issuer 5b0c... --reason "key leaked"',
    )(add)
    group.command(
        "list", cls=connection.ConnectedCommand, epilog="Example: airbridge revocation list --json"
    )(list_revocations)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge revocation remove pool eu-west-1/gpu"
    )(remove)
    return group


def add(  # noqa: PLR0917 - typer fills them by name
    context: typer.Context,
    kind: Kind,
    value: Value,
    reason: Annotated[str, typer.Option(help="Reason, shown to the revoked callers and in the audit trail.")],
    break_glass: BreakGlass = False,
    json: Json = False,
) -> None:
    """Revoke it immediately, on every gateway.

    Workers of a revoked issuer may enrol again by their join method, under the current CA; all others stop.
    """
    with connection.client(context) as client:
        alone = {"break_glass": True} if break_glass else {}
        done = client.post("revocations", {"kind": kind, "value": value, "reason": reason, **alone})
    _show(done, "revoked", json)


def list_revocations(
    context: typer.Context,
    json: Json = False,
) -> None:
    """List revocations, newest first."""
    with connection.client(context) as client:
        found = client.get("revocations")["revocations"]
    if json:
        output.emit_json(found)
    else:
        output.results().print(output.table(None, _COLUMNS, map(_row, found)))


def remove(
    context: typer.Context,
    kind: Kind,
    value: Value,
    json: Json = False,
) -> None:
    """Remove a revocation."""
    with connection.client(context) as client:
        done = client.delete("revocations", kind=kind, value=value)
    _show(done, "no longer revoked", json)


def _show(done: dict[str, Any], what: str, json: bool) -> None:
    if json:
        output.emit_json(done)
    else:
        output.emit_text(f"{done['kind']} {done['value']}: {what}")


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    return (row["kind"], row["value"], row["reason"], row["actor"], row["revoked_at"])
