"""Connection to the gateway, from options, environment variables or a local platform's state directory.

Commands and groups that use the gateway are built with `ConnectedCommand` and `ConnectedGroup`, which add the connection
options (``--dir``, ``--url``, ``--token-file``, ``--ca-file``). The options are stored in the Typer context, where `client`
reads them: ``airbridge worker list --url URL`` and ``airbridge worker --url URL list`` are the same. If an option is given
in both positions, the one after the command applies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import typer
from click.core import ParameterSource
from typer.core import TyperCommand, TyperGroup, TyperOption

from airbridge.control_plane.cli import arguments
from airbridge.control_plane.local import state
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.operator_client import Endpoint, OperatorClient
from airbridge.core.exceptions import ConfigurationError

# Key of the given options in `Context.meta`, which a command shares with its group.
_META: Final = "airbridge.connection"
_PANEL: Final = "Connection"


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Connection options of a command."""

    directory: Path = arguments.DEFAULT_DIRECTORY
    url: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None


class ConnectedCommand(TyperCommand):
    """Command with the connection options."""

    def __init__(self, *args: Any, params: list[click.Parameter] | None = None, **more: Any) -> None:
        super().__init__(*args, params=[*(params or []), *_options()], **more)


class ConnectedGroup(TyperGroup):
    """Command group that accepts the connection options before its commands."""

    def __init__(self, *args: Any, params: list[click.Parameter] | None = None, **more: Any) -> None:
        super().__init__(*args, params=[*(params or []), *_options()], **more)


def options(context: typer.Context) -> ConnectionOptions:
    """Return the connection options of a command and its group."""
    return ConnectionOptions(**context.meta.get(_META, {}))


def client(context: typer.Context) -> OperatorClient:
    """Return a client of the gateway of the command's options, or of the local platform. Raises `ConfigurationError`."""
    return connect(options(context))


def anonymous_client(context: typer.Context) -> OperatorClient:
    """Return a client without a token, for sign-in. Raises `ConfigurationError`."""
    given = options(context)
    url, ca_file = _address(given)
    return OperatorClient(Endpoint(url, ca_file, None))


def _address(given: ConnectionOptions) -> tuple[str, Path | None]:
    if given.url is not None:
        return given.url, given.ca_file
    local = StateDir(given.directory)
    return state.read(local).operator_url, given.ca_file or local.ca_file


def connect(given: ConnectionOptions) -> OperatorClient:
    """Return a client of the gateway of these options, or of the local platform. Raises `ConfigurationError`."""
    (url, ca_file), token_file = _address(given), given.token_file
    if given.url is None:
        token_file = token_file or StateDir(given.directory).operator_token_file
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


def _options() -> list[click.Parameter]:
    file = click.Path(path_type=Path)
    directory = click.Path(path_type=Path, resolve_path=True)
    local = "the local platform's"
    state_dir, url = "The local platform's state directory.", "URL of the gateway's operator API."
    ca_file = "PEM file of the CA that issued the gateway's certificate."
    return [
        _option("--dir", "directory", directory, help=state_dir, default=arguments.DEFAULT_DIRECTORY),
        _option("--url", "url", click.STRING, help=url, show_default="the local platform in --dir"),
        _option("--token-file", "token_file", file, help="File with an access token.", show_default=local),
        _option("--ca-file", "ca_file", file, help=ca_file, show_default=local),
    ]


def _option(flag: str, name: str, kind: click.ParamType, **more: Any) -> click.Parameter:
    variable = f"AIRBRIDGE_{flag.removeprefix('--').replace('-', '_').upper()}"
    # The command's function has no parameter for it (expose_value): the callback stores the value in the context.
    return TyperOption(
        param_decls=[flag, name],
        type=kind,
        expose_value=False,
        callback=_store,
        envvar=variable,
        show_envvar=True,
        rich_help_panel=_PANEL,
        **{"show_default": True, **more},
    )


def _store(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value is None or parameter.name is None:
        return
    given = context.meta.setdefault(_META, {})
    # A variable of the environment is seen by the group and by the command; it must not replace an option.
    if (
        context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        or parameter.name not in given
    ):
        given[parameter.name] = value
