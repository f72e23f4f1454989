"""``airbridge env``: lock and build the packages of a bundle without a platform, compare what was built, and push it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.cli.arguments import Json
from airbridge.control_plane.cli.exit_codes import Exit
from airbridge.control_plane.cli.progress import SendDisplay

if TYPE_CHECKING:
    from airbridge.core.code.environment import Environment

_Folder = Annotated[
    Path, typer.Argument(help="The folder of DAG files.", exists=True, file_okay=False, resolve_path=True)
]
_Built = Annotated[
    Path,
    typer.Argument(
        help="A folder that 'env build --out' has written.", exists=True, file_okay=False, resolve_path=True
    ),
]


def build() -> typer.Typer:
    """Return the command group."""
    group = typer.Typer(
        cls=connection.ConnectedGroup,
        help="Build the packages of a bundle.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.callback()(_group)
    group.command(name="build", epilog="Example: airbridge env build ./dags --out ./built")(build_environment)
    group.command(epilog="Example: airbridge env show ./built")(show)
    group.command(epilog="Example: airbridge env diff ./built-main ./built")(diff)
    group.command(
        cls=connection.ConnectedCommand, epilog="Example: airbridge env push ./built --bundle pushed"
    )(push)
    return group


def _group() -> None:
    """Build the packages of a bundle."""


def build_environment(
    folder: _Folder,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to write the manifest, the lock and the archives to.",
            show_default="none",
            resolve_path=True,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Lock and build the packages of a folder of DAG files as publishing it does. Exit status 1 if it would be refused.

    Index and limits are those of the [airbridge] package_* settings. Equal requirements have equal digests under the same versions of the platform.
    """
    from airbridge.core.code import environment
    from airbridge.core.exceptions import EnvironmentRefused
    from airbridge.executor.bundle_settings import load_packages
    from airbridge.executor.bundles.environments import inputs
    from airbridge.executor.bundles.environments.builder import EnvironmentBuilder

    output.messages().print(f"locking and building the packages of {folder}", markup=False)
    with tempfile.TemporaryDirectory(prefix="airbridge-env-") as scratch:
        try:
            prepared = EnvironmentBuilder(Path(scratch), load_packages(), os.environ).prepare(folder)
        except EnvironmentRefused as error:
            for failure in error.failures:
                output.emit_text(str(failure))
            raise typer.Exit(Exit.FAILED) from error
        if not prepared.files:
            output.messages().print("it needs no packages beyond the platform's", markup=False)
            if json:
                _print(environment.Environment("", (), {}), json)
            return
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name, content in prepared.files.items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).write_bytes(content)
            for version, archive in prepared.archives.items():
                (out / f"{version.removeprefix('sha256:')}.tar.gz").write_bytes(archive.read_bytes())
            if prepared.inputs is not None:
                (out / inputs.FILE).write_bytes(prepared.inputs.encoded())
        _print(environment.Environment.decode(prepared.files[environment.MANIFEST]), json)


def show(built: _Built, json: Json = False) -> None:
    """Show the digests and packages of an environment that was built."""
    _print(_read(built), json)


def diff(before: _Built, after: _Built, json: Json = False) -> None:
    """Show the packages that differ between two environments. Exit status 0 whether any do or not."""
    old, new = _read(before).packages, _read(after).packages
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if json:
        output.emit_json(
            [{"package": name, "before": old.get(name), "after": new.get(name)} for name in names]
        )
        return
    for name in names:
        output.emit_text(f"{name} {old.get(name, '-')} -> {new.get(name, '-')}")


def push(
    context: typer.Context,
    built: _Built,
    bundle: Annotated[str, typer.Option(help="The bundle that needs the packages.")] = "pushed",
    json: Json = False,
) -> None:
    """Give a control plane without an index the packages of a bundle. It uses them wherever the bundle has these requirement files.

    Build them in the control plane's image, with its [airbridge] package_* settings: others are refused with what differs. Scope: environments:push.
    """
    from airbridge.control_plane import environments

    with (
        connection.client(context) as client,
        SendDisplay(
            output.messages(), f"reading {built}", "the gateway verifies and stores the archive"
        ) as display,
    ):
        pushed = environments.push(client, built, bundle, display)
    if json:
        output.emit_json(vars(pushed))
    else:
        output.emit_text(f"{pushed.bundle} {pushed.inputs} ({len(pushed.sent)} archives sent)")


def _read(built: Path) -> Environment:
    from airbridge.core.code import environment
    from airbridge.core.exceptions import BundleError

    found = environment.of_tree(built)
    if found is None:
        raise BundleError(
            f"{built} has no {environment.MANIFEST}: name a folder that 'airbridge env build --out' wrote"
        )
    return found


def _print(found: Environment, json: bool) -> None:
    if json:
        builds = [vars(build) for build in sorted(found.builds)]
        output.emit_json({"inputs": found.inputs, "builds": builds, "packages": dict(found.packages)})
        return
    for build in sorted(found.builds):
        size = f"{build.bytes / 1024 / 1024:.1f} MiB"
        output.emit_text(f"{build.version} Python {build.python} {build.machine} {size}")
    for name, version in sorted(found.packages.items()):
        output.emit_text(f"{name}=={version}")
