"""The commands in one place, and what an error becomes."""

from __future__ import annotations

import sys

import typer
import typer.main

from airbridge.ci.cli import advisories, approvals, copies, exit_codes, images, output, releases, status
from airbridge.ci.exceptions import CiError
from airbridge.core.command_tree import printable

app = typer.Typer(
    name="airbridge-ci",
    help=f"Version parity, reproducible images, releases and their promotion. {exit_codes.MEANING}",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(images.parity)
app.command()(images.seal)
app.command()(advisories.advisories)
app.command()(images.build)
app.command("assemble")(images.assemble_)
app.command("host-package")(images.host_package)
app.command()(images.inspect)
app.command()(images.publish)
app.command("verify-published")(images.verify_published)
app.command()(copies.copy)
app.command()(copies.registries)
app.command()(releases.keygen)
app.command()(releases.sign)
app.command()(releases.verify)
app.command()(approvals.approved)
app.command()(releases.promote)
app.command()(releases.deploy)
app.command()(releases.drift)
app.add_typer(status.app, name="release")


def main() -> None:
    """Run a command; an error of ours becomes its message and its exit code."""
    try:
        printable(typer.main.get_command(app))()
    except CiError as error:
        output.complain(str(error))
        sys.exit(exit_codes.code_of(error))
