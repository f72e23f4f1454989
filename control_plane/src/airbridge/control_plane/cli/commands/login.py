"""``airbridge login``: sign in with an OpenID Connect issuer, for an access token of minutes."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.core.exceptions import ConfigurationError

IdTokenFile = Annotated[
    Path | None,
    typer.Option(
        "--id-token-file",
        help="File with an ID token of the issuer; - for stdin. Without it, you sign in with a browser (device grant).",
    ),
]
Nonce = Annotated[str | None, typer.Option(help="With --id-token-file: the nonce of the request for it.")]
Out = Annotated[
    Path | None,
    typer.Option(
        help="File for the access token, readable by you alone; name it in AIRBRIDGE_TOKEN_FILE. Without it, stdout.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        cls=connection.ConnectedCommand,
        epilog="Examples: airbridge login --url https://gateway.example.com:8444 --out ~/.airbridge-token;  "
        "airbridge login --id-token-file id-token --out token",
    )(login)


def login(
    context: typer.Context,
    id_token_file: IdTokenFile = None,
    nonce: Nonce = None,
    out: Out = None,
    json: Json = False,
) -> None:
    """Sign in. The gateway verifies the issuer's ID token and gives an access token that ends after an hour by default.

    Its scopes are those of your groups in the gateway's oidc_file. It is revoked like any other: 'airbridge token revoke ID'.
    """
    with connection.anonymous_client(context) as client:
        if id_token_file is not None:
            token = _read(id_token_file)
        else:
            nonce = secrets.token_urlsafe(32)
            token = _with_browser(client.get("sessions"), nonce)
        named = {"nonce": nonce} if nonce else {}
        made = client.post("sessions", {"id_token": token, **named})
    if out is not None:
        _write(out, made["token"])
    _show(made, out, json)


def _with_browser(issuer: dict[str, Any], nonce: str) -> str:
    from airbridge.control_plane.sign_in.device_grant import DeviceGrant

    with DeviceGrant(issuer["issuer"], issuer["client_id"], issuer["scope"]) as grant:
        prompt = grant.begin(nonce)
        shown = output.messages()
        shown.print(f"Open {prompt.complete or prompt.uri} and check the code {prompt.code}", markup=False)
        return grant.wait(prompt)


def _read(path: Path) -> str:
    try:
        return (sys.stdin.read() if str(path) == "-" else path.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"--id-token-file {path}: {error}; it must be a readable file that holds an ID token"
        ) from error


def _write(path: Path, token: str) -> None:
    try:
        # A file of its own, so that no moment and no older file leaves the token readable to others.
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(token + "\n")
        new.replace(path)
    except OSError as error:
        raise ConfigurationError(
            f"--out {path}: {error.strerror}; it must be a file that can be written"
        ) from error


def _show(made: dict[str, Any], out: Path | None, json: bool) -> None:
    if json:
        output.emit_json(made if out is None else {name: made[name] for name in made if name != "token"})
        return
    output.messages().print(
        f"signed in as {made['owner']}: token {made['id']}, expires at {made['expires_at']}", markup=False
    )
    if out is None:
        output.emit_text(made["token"])
