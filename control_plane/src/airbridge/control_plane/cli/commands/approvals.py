"""``airbridge approvals``: list, review and decide the proposals of other operators."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.cli.arguments import Json

_COLUMNS = ("id", "action", "status", "by", "what", "expires", "decided by")
Proposal = Annotated[str, typer.Argument(help="The proposal's id, as shown by 'airbridge approvals list'.")]


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(
        cls=connection.ConnectedGroup,
        help="Approve what other operators propose, where two are required ([airbridge] four_eyes).",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command(
        "list", cls=connection.ConnectedCommand, epilog="Example: airbridge approvals list --status proposed"
    )(list_proposals)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge approvals show 5f2c9e1a7b3d4c60"
    )(show)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge approvals approve 5f2c9e1a7b3d4c60"
    )(approve)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge approvals refuse 5f2c9e1a7b3d4c60"
    )(refuse)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge approvals collect 5f2c9e1a7b3d4c60"
    )(collect)
    return group


def list_proposals(
    context: typer.Context,
    status: Annotated[str | None, typer.Option(help="proposed, approved, refused or expired.")] = None,
    json: Json = False,
) -> None:
    """List proposals, newest first."""
    with connection.client(context) as client:
        found = client.get("proposals", **({"status": status} if status else {}))["proposals"]
    if json:
        output.emit_json(found)
    else:
        output.results().print(output.table(None, _COLUMNS, map(_row, found)))


def show(context: typer.Context, proposal: Proposal, json: Json = False) -> None:
    """Show a proposal with its whole content, a policy's text included."""
    with connection.client(context) as client:
        found = client.get(f"proposals/{proposal}")
    if json:
        output.emit_json(found)
        return
    output.emit_text(
        f"{found['id']}: {found['action']}, {found['status']}, by {found['owner']} (token {found['token']})"
    )
    for name, value in found["payload"].items():
        output.emit_text(f"  {name}: {value}")


def approve(context: typer.Context, proposal: Proposal, json: Json = False) -> None:
    """Approve another owner's proposal: it takes effect now. Your token must allow the action itself."""
    _decide(context, proposal, "approve", json)


def refuse(context: typer.Context, proposal: Proposal, json: Json = False) -> None:
    """Refuse a proposal, or withdraw your own."""
    _decide(context, proposal, "refuse", json)


def collect(context: typer.Context, proposal: Proposal, json: Json = False) -> None:
    """Print the token of your approved proposal, once. It is created now, with the token that proposed it."""
    with connection.client(context) as client:
        made = client.post(f"proposals/{proposal}/collect")
    if json:
        output.emit_json(made)
        return
    output.messages().print(
        f"{made['kind']} token {made['id']}, expires at {made['expires_at']}", markup=False
    )
    output.emit_text(made["token"])


def _decide(context: typer.Context, proposal: str, decision: str, json: bool) -> None:
    with connection.client(context) as client:
        done = client.post(f"proposals/{proposal}/{decision}")
    if json:
        output.emit_json(done)
    else:
        decided = done["proposal"]
        output.emit_text(f"{decided['id']}: {decided['action']} {decided['status']}")


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    what = ", ".join(f"{name}={value}" for name, value in row["payload"].items() if value is not None)
    return (row["id"], row["action"], row["status"], row["owner"], what, row["expires_at"], row["decided_by"])
