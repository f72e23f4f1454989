"""``airbridge token``: create, list and revoke join tokens and access tokens."""

from __future__ import annotations

import getpass
import socket
from datetime import timedelta
from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.cli.arguments import BreakGlass, Json
from airbridge.core.exceptions import ConfigurationError

_COLUMNS = ("id", "kind", "owner", "scopes", "uses left", "expires", "last used", "revoked")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(
        cls=connection.ConnectedGroup,
        help="Manage join tokens and access tokens.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command(
        cls=connection.ConnectedCommand,
        epilog="Examples: airbridge token create --region eu-west-1 --ttl 1h;  "
        "airbridge token create --owner ci --scope 'dags:push team-a' --ttl 12h",
    )(create)
    group.command(
        epilog="Example: airbridge token root --owner ann --scope 'workers:*' --scope 'tokens:*' --ttl 7d"
    )(root)
    group.command("list", cls=connection.ConnectedCommand, epilog="Example: airbridge token list --json")(
        list_tokens
    )
    group.command(cls=connection.ConnectedCommand, epilog="Example: airbridge token revoke 5f2c9e1a7b3d4c60")(
        revoke
    )
    return group


def create(  # noqa: PLR0917 - typer fills them by name
    context: typer.Context,
    region: Annotated[
        str | None, typer.Option(help="For a join token: the region that workers may join.")
    ] = None,
    pool: Annotated[str, typer.Option(help="The pool of that region.")] = "default",
    worker: Annotated[
        str | None, typer.Option(help="A join token: the one name that may join with it.")
    ] = None,
    uses: Annotated[int, typer.Option(min=1, help="How many workers may join with it.")] = 1,
    owner: Annotated[str | None, typer.Option(help="An access token: whose it is.")] = None,
    scopes: Annotated[
        list[str],
        typer.Option("--scope", help="For an access token: what it allows; may be given several times."),
    ] = [],  # noqa: B006 - typer copies it
    ttl: Annotated[
        str | None,
        typer.Option(
            help="Time until it expires: 30m, 12h, 7d; at most as long as the token in use.",
            show_default="1h",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Create a token. Its secret is printed once and cannot be shown again.

    With --region: a join token, for workers of that region and pool, or for one name there (--worker).
    With --owner and --scope: an access token, for a person or a pipeline. Its owner is below that of the token in use
    (ann/ci), its scopes are a subset of that one's, and it ends with it, by time or by revocation.
    """
    body = _token_request(region, owner, pool=pool, worker=worker, uses=uses, scopes=scopes, ttl=ttl)
    with connection.client(context) as client:
        made = client.post("tokens", {"token": body})
    if json:
        output.emit_json(made)
        return
    output.messages().print(
        f"{made['kind']} token {made['id']}, expires at {made['expires_at']}", markup=False
    )
    output.emit_text(made["token"])


def root(
    owner: Annotated[str, typer.Option(help="Whose it is.")],
    scopes: Annotated[list[str], typer.Option("--scope", help="What it allows; may be given several times.")],
    ttl: Annotated[str, typer.Option(help="How long it is good for: 30m, 12h, 7d.")] = "7d",
    json: Json = False,
) -> None:
    """Make an access token without a parent. Runs on a host of the control plane, and writes to Airflow's database itself.

    The first token of a deployment is made so, and the one that replaces it: a token that is made with another one ends with it.
    """
    from airbridge.control_plane.gateway.database import unit
    from airbridge.control_plane.identity import tokens

    with unit() as work:
        made = tokens.create_access(
            work.session,
            scopes=scopes,
            owner=owner,
            actor=f"database:{getpass.getuser()}@{socket.gethostname()}",
            ttl=timedelta(seconds=_seconds(ttl)),
        )
        shown = {"id": made.row.id, "owner": owner, "expires_at": made.row.expires_at.isoformat()}
    if json:
        output.emit_json({**shown, "token": made.text})
        return
    output.messages().print(f"access token {shown['id']}, good until {shown['expires_at']}", markup=False)
    output.emit_text(made.text)


def list_tokens(
    context: typer.Context,
    json: Json = False,
) -> None:
    """List the tokens, newest first. Secrets cannot be shown again."""
    with connection.client(context) as client:
        tokens = client.get("tokens")["tokens"]
    if json:
        output.emit_json(tokens)
    else:
        output.results().print(output.table(None, _COLUMNS, map(_row, tokens)))


def revoke(
    context: typer.Context,
    token: Annotated[str, typer.Argument(help="The token's id, as shown by 'airbridge token list'.")],
    break_glass: BreakGlass = False,
    json: Json = False,
) -> None:
    """Revoke a token immediately, and every token that was made with it."""
    with connection.client(context) as client:
        revoked = client.delete(f"tokens/{token}", **({"break_glass": "true"} if break_glass else {}))
    if json:
        output.emit_json(revoked)
    else:
        output.emit_text(f"{revoked['id']}: revoked at {revoked['revoked_at']}")


def _token_request(
    region: str | None,
    owner: str | None,
    *,
    pool: str,
    worker: str | None,
    uses: int,
    scopes: list[str],
    ttl: str | None,
) -> dict[str, Any]:
    if (region is None) == (owner is None):
        raise ConfigurationError("give --region (a join token) or --owner with --scope (an access token)")
    lifetime = {} if ttl is None else {"ttl_seconds": _seconds(ttl)}
    if region is not None:
        named = {"worker": worker} if worker else {}
        return {"kind": "join", "region": region, "pool": pool, **named, "uses": uses, **lifetime}
    if not scopes:
        raise ConfigurationError(
            "--scope is not given; an access token needs one or more, like 'dags:push team-a'"
        )
    return {"kind": "access", "owner": owner, "scopes": scopes, **lifetime}


def _seconds(ttl: str) -> float:
    number, unit = ttl[:-1], ttl[-1:]
    if unit not in _UNITS or not number.isdigit() or int(number) == 0:
        raise ConfigurationError(f"--ttl {ttl!r}: must be a number and a unit (s, m, h, d), like 12h")
    return float(int(number) * _UNITS[unit])


def _row(token: dict[str, Any]) -> tuple[Any, ...]:
    scopes = token["scopes"]
    shown = f"{scopes['pool']}@{scopes['region']}" if isinstance(scopes, dict) else ", ".join(scopes)
    return (
        token["id"],
        token["kind"],
        token["owner"],
        shown,
        token["uses_left"],
        token["expires_at"],
        token["last_used_at"],
        token["revoked_at"],
    )
