"""The commands in one place, and what an error becomes."""

from __future__ import annotations

import sys

import typer

from airbridge.ci.cli import exits, images, output, releases
from airbridge.ci.exceptions import CiError

app = typer.Typer(
    name="airbridge-ci",
    help=f"Version parity, reproducible images, releases and their promotion. {exits.MEANING}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(images.parity)
app.command()(images.build)
app.command("assemble")(images.assemble_)
app.command()(images.inspect)
app.command()(images.publish)
app.command("verify-published")(images.verify_published)
app.command()(releases.keygen)
app.command()(releases.sign)
app.command()(releases.verify)
app.command()(releases.promote)
app.command()(releases.deploy)
app.command()(releases.drift)


def main() -> None:
    """Run a command; an error of ours becomes its message and its exit code."""
    try:
        app()
    except CiError as error:
        output.complain(str(error))
        sys.exit(exits.code_of(error))
