"""``airbridge worker``: the fleet."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import arguments, connection, output
from airbridge.control_plane.cli.arguments import Directory, Json
from airbridge.control_plane.cli.connection import CaFile, TokenFile, Url

Worker = Annotated[str, typer.Argument(help="The worker's id.")]
CommentText = Annotated[str, typer.Option(help="Why; kept with the worker and in the audit trail.")]

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


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(help="See and steer the workers.", no_args_is_help=True, rich_markup_mode="rich")
    group.command("list", epilog="Example: airbridge worker list --json")(list_workers)
    group.command(epilog='Example: airbridge worker drain eu-west-1-default-1 --comment "kernel update"')(
        drain
    )
    group.command(
        epilog='Example: airbridge worker maintenance eu-west-1-default-1 --comment "new disk, until 14:00"'
    )(maintenance)
    group.command(epilog="Example: airbridge worker resume eu-west-1-default-1")(resume)
    group.command(epilog='Example: airbridge worker revoke eu-west-1-default-1 --comment "host lost"')(revoke)
    return group


def list_workers(
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """List the workers that the token may see."""
    with connection.client(directory, url, token_file, ca_file) as client:
        workers = client.get("workers")["workers"]
    if json:
        output.emit_json(workers)
    else:
        output.results().print(output.table(None, _COLUMNS, map(_row, workers)))


def drain(  # noqa: PLR0917 - typer fills them by name
    worker: Worker,
    comment: CommentText = "",
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Let a worker finish what it runs, and claim nothing more."""
    with connection.client(directory, url, token_file, ca_file) as client:
        _show(client.post(f"workers/{worker}/drain", {"comment": comment}), json)


def maintenance(  # noqa: PLR0917 - typer fills them by name
    worker: Worker,
    comment: Annotated[str, typer.Option(help="Why, and until when; required.")],
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Drain a worker for planned work on its host: pages and alarms show the comment, not a fault."""
    with connection.client(directory, url, token_file, ca_file) as client:
        _show(client.post(f"workers/{worker}/maintenance", {"comment": comment}), json)


def resume(  # noqa: PLR0917 - typer fills them by name
    worker: Worker,
    comment: CommentText = "",
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Let a drained worker claim again."""
    with connection.client(directory, url, token_file, ca_file) as client:
        _show(client.post(f"workers/{worker}/resume", {"comment": comment}), json)


def revoke(  # noqa: PLR0917 - typer fills them by name
    worker: Worker,
    comment: CommentText = "",
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Refuse a worker from its next request on, for good: its name cannot enrol again."""
    with connection.client(directory, url, token_file, ca_file) as client:
        _show(client.post(f"workers/{worker}/revoke", {"comment": comment}), json)


def _show(worker: dict[str, Any], json: bool) -> None:
    if json:
        output.emit_json(worker)
    else:
        output.emit_text(f"{worker['id']}: {worker['wanted']} (the worker says {worker['state']})")


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
