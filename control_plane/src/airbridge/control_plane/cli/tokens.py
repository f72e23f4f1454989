"""``airbridge token``: who may join and who may operate."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import arguments, connection, output
from airbridge.control_plane.cli.arguments import Directory, Json
from airbridge.control_plane.cli.connection import CaFile, TokenFile, Url
from airbridge.executor.exceptions import ConfigurationError

_COLUMNS = ("id", "kind", "owner", "scopes", "uses left", "expires", "last used", "revoked")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(help="Join tokens and access tokens.", no_args_is_help=True, rich_markup_mode="rich")
    group.command(
        epilog="Examples: airbridge token create --region eu-west-1 --ttl 1h;  "
        "airbridge token create --owner ci --scope 'dags:push team-a' --ttl 30d"
    )(create)
    group.command("list", epilog="Example: airbridge token list --json")(list_tokens)
    group.command(epilog="Example: airbridge token revoke 5f2c9e1a7b3d4c60")(revoke)
    return group


def create(  # noqa: PLR0917 - typer fills them by name
    region: Annotated[
        str | None, typer.Option(help="A join token: the region it lets a worker join.")
    ] = None,
    pool: Annotated[str, typer.Option(help="The pool of that region.")] = "default",
    uses: Annotated[int, typer.Option(min=1, help="How many workers may join with it.")] = 1,
    owner: Annotated[str | None, typer.Option(help="An access token: whose it is.")] = None,
    scopes: Annotated[
        list[str], typer.Option("--scope", help="What it allows; may be given several times.")
    ] = [],  # noqa: B006 - typer copies it
    ttl: Annotated[str, typer.Option(help="How long it is good for: 30m, 12h, 7d.")] = "1h",
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Make a token. It is shown once, here, and kept nowhere.

    With --region: a join token, for workers of that region and pool.
    With --owner and --scope: an access token, for a person or a pipeline.
    """
    body = _asked(region, owner, pool=pool, uses=uses, scopes=scopes, seconds=_seconds(ttl))
    with connection.client(directory, url, token_file, ca_file) as client:
        made = client.post("tokens", {"token": body})
    if json:
        output.emit_json(made)
        return
    output.messages().print(
        f"{made['kind']} token {made['id']}, good until {made['expires_at']}", markup=False
    )
    output.emit_text(made["token"])


def list_tokens(
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """List the tokens, newest first. Their secrets are not known any more."""
    with connection.client(directory, url, token_file, ca_file) as client:
        tokens = client.get("tokens")["tokens"]
    if json:
        output.emit_json(tokens)
    else:
        output.results().print(output.table(None, _COLUMNS, map(_row, tokens)))


def revoke(  # noqa: PLR0917 - typer fills them by name
    token: Annotated[str, typer.Argument(help="The token's id, as 'list' shows it.")],
    directory: Directory = arguments.DEFAULT_DIRECTORY,
    url: Url = None,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    json: Json = False,
) -> None:
    """Make a token useless from now on."""
    with connection.client(directory, url, token_file, ca_file) as client:
        revoked = client.delete(f"tokens/{token}")
    if json:
        output.emit_json(revoked)
    else:
        output.emit_text(f"{revoked['id']}: revoked at {revoked['revoked_at']}")


def _asked(
    region: str | None, owner: str | None, *, pool: str, uses: int, scopes: list[str], seconds: float
) -> dict[str, Any]:
    if (region is None) == (owner is None):
        raise ConfigurationError("give --region (a join token) or --owner with --scope (an access token)")
    if region is not None:
        return {"kind": "join", "region": region, "pool": pool, "uses": uses, "ttl_seconds": seconds}
    if not scopes:
        raise ConfigurationError(
            "--scope is not given; an access token needs one or more, like 'dags:push team-a'"
        )
    return {"kind": "access", "owner": owner, "scopes": scopes, "ttl_seconds": seconds}


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
