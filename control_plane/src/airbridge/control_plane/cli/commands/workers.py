"""``airbridge worker``: list, drain, resume and revoke workers."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.cli.arguments import BreakGlass, Json

Worker = Annotated[str, typer.Argument(help="The worker's id.")]
CommentText = Annotated[str, typer.Option(help="Reason, kept with the worker and in the audit trail.")]

_COLUMNS = (
    "id",
    "region",
    "pool",
    "state",
    "wanted",
    "standing",
    "slots",
    "journal",
    "airbridge",
    "last heartbeat",
    "why",
)

_KEY_COLUMNS = ("worker", "region", "pool", "key", "owner", "joins", "bound at", "seen at")


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(
        cls=connection.ConnectedGroup,
        help="List, drain, resume and revoke workers.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command("list", cls=connection.ConnectedCommand, epilog="Example: airbridge worker list --json")(
        list_workers
    )
    group.command(
        cls=connection.ConnectedCommand,
        epilog='Example: airbridge worker drain eu-west-1-default-1 --comment "kernel update"',
    )(drain)
    group.command(
        cls=connection.ConnectedCommand,
        epilog='Example: airbridge worker maintenance eu-west-1-default-1 --comment "new disk, until 14:00"',
    )(maintenance)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge worker resume eu-west-1-default-1"
    )(resume)
    group.command(
        cls=connection.ConnectedCommand,
        epilog='Example: airbridge worker revoke eu-west-1-default-1 --comment "host lost"',
    )(revoke)
    group.command(
        cls=connection.ConnectedCommand,
        epilog="Example: airbridge worker bind press-3 --region factory-7 --key 3q2-7wBkS0hMZ1nY5v8xQd4rT6uJpLcEaGfHiKoNmVs",
    )(bind)
    group.command(cls=connection.ConnectedCommand, epilog="Example: airbridge worker unbind press-3")(unbind)
    group.command(cls=connection.ConnectedCommand, epilog="Example: airbridge worker keys --json")(keys)
    return group


def list_workers(
    context: typer.Context,
    json: Json = False,
) -> None:
    """List the workers that the access token may read."""
    with connection.client(context) as client:
        workers = client.get("workers")["workers"]
    if json:
        output.emit_json(workers)
    else:
        output.results().print(output.table(None, _COLUMNS, map(_row, workers)))


def drain(
    context: typer.Context,
    worker: Worker,
    comment: CommentText = "",
    json: Json = False,
) -> None:
    """Drain a worker: it finishes its running tasks and claims no more."""
    with connection.client(context) as client:
        _show(client.post(f"workers/{worker}/drain", {"comment": comment}), json)


def maintenance(
    context: typer.Context,
    worker: Worker,
    comment: Annotated[str, typer.Option(help="Reason and expected end; required.")],
    json: Json = False,
) -> None:
    """Drain a worker for planned maintenance: the dashboard shows the comment instead of a fault."""
    with connection.client(context) as client:
        _show(client.post(f"workers/{worker}/maintenance", {"comment": comment}), json)


def resume(
    context: typer.Context,
    worker: Worker,
    comment: CommentText = "",
    json: Json = False,
) -> None:
    """Resume a drained worker: it may claim again."""
    with connection.client(context) as client:
        _show(client.post(f"workers/{worker}/resume", {"comment": comment}), json)


def revoke(
    context: typer.Context,
    worker: Worker,
    comment: CommentText = "",
    break_glass: BreakGlass = False,
    json: Json = False,
) -> None:
    """Revoke a worker immediately: its name cannot enrol again, until 'airbridge revocation remove worker NAME'."""
    with connection.client(context) as client:
        alone = {"break_glass": True} if break_glass else {}
        _show(client.post(f"workers/{worker}/revoke", {"comment": comment, **alone}), json)


def bind(  # noqa: PLR0917 - typer fills them by name
    context: typer.Context,
    worker: Worker,
    region: Annotated[str, typer.Option(help="Region of the worker.")],
    key: Annotated[
        str, typer.Option(help="Public key of the host, as 'airbridge-worker key' prints it there.")
    ],
    pool: Annotated[str, typer.Option(help="The pool of that region.")] = "default",
    json: Json = False,
) -> None:
    """Bind a host's key to a worker's name: the host then joins by itself, and no other host under this name.

    It replaces a key that was bound before. A worker that was stopped because its state directory was copied is also
    revoked: remove the revocation first.
    """
    with connection.client(context) as client:
        bound = client.post("bound-keys", {"worker": worker, "region": region, "pool": pool, "key": key})
    _show_key(bound, json)


def unbind(context: typer.Context, worker: Worker, json: Json = False) -> None:
    """Forget the key of a worker's host: it cannot join again. To stop a running worker, revoke it."""
    with connection.client(context) as client:
        _show_key(client.delete(f"bound-keys/{worker}"), json)


def keys(context: typer.Context, json: Json = False) -> None:
    """List the hosts' keys that are bound to workers' names, and how often each has joined."""
    with connection.client(context) as client:
        bound = client.get("bound-keys")["keys"]
    if json:
        output.emit_json(bound)
    else:
        output.results().print(output.table(None, _KEY_COLUMNS, (tuple(row.values()) for row in bound)))


def _show_key(bound: dict[str, Any], json: bool) -> None:
    if json:
        output.emit_json(bound)
    else:
        output.emit_text(f"{bound['worker']} in {bound['pool']}@{bound['region']}: key {bound['key']}")


def _show(worker: dict[str, Any], json: bool) -> None:
    if json:
        output.emit_json(worker)
    else:
        output.emit_text(f"{worker['id']}: {worker['wanted']} (reported state: {worker['state']})")


def _row(worker: dict[str, Any]) -> tuple[Any, ...]:
    return (
        worker["id"],
        worker["region"],
        worker["pool"],
        worker["state"],
        worker["wanted"],
        worker.get("standing"),
        f"{worker['slots_used']}/{worker['slots_total']}",
        worker["journal_pending"],
        worker["versions"].get("airbridge"),
        worker["last_heartbeat_at"],
        worker.get("why") or worker["comment"],
    )
