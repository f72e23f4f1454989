"""How a command finds the gateway: from options, from the environment, or from a local platform."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airbridge.control_plane.local import state
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.operator_client import Endpoint, OperatorClient
from airbridge.executor.exceptions import ConfigurationError

Url = Annotated[
    str | None,
    typer.Option(
        envvar="AIRBRIDGE_URL",
        help="The gateway's operators' URL.",
        show_default="the local platform in --dir",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        envvar="AIRBRIDGE_TOKEN_FILE",
        help="File that holds an access token.",
        show_default="the local platform's",
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        envvar="AIRBRIDGE_CA_FILE",
        help="PEM of the CA that signed the gateway's certificate.",
        show_default="the local platform's",
    ),
]


def client(directory: Path, url: str | None, token_file: Path | None, ca_file: Path | None) -> OperatorClient:
    """Return a client of the gateway that the options name, or of the local platform's."""
    local = StateDir(directory)
    if url is None:
        url, ca_file = state.read(local).operator_url, ca_file or local.ca_file
        token_file = token_file or local.operator_token_file
    if token_file is None:
        raise ConfigurationError(
            "--token-file (AIRBRIDGE_TOKEN_FILE) is not set; it must name a file that holds an access token, "
            "as 'airbridge token create' prints it"
        )
    return OperatorClient(Endpoint(url, ca_file, _token(token_file)))


def _token(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(
            f"--token-file {path}: {error.strerror}; it must be a readable file that holds an access token"
        ) from error
