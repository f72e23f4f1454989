"""`airbridge-ci approved`: enough persons behind a deployment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airbridge.ci.checkout import Checkout
from airbridge.ci.cli import output
from airbridge.ci.exceptions import PromotionRefused
from airbridge.ci.rollout import approvals
from airbridge.ci.rollout.plan import FILE, parse


def approved(
    environment: Annotated[str, typer.Argument(help="the environment that is deployed to")],
    root: Annotated[Path, typer.Option(help="a directory of the checkout")] = Path(),
) -> None:
    """Check that enough persons stand behind the workflow's run: who started it, and who approved it.

    `persons` of ci/rollout.toml is how many an environment needs; 1 needs no approval.

    Example: GITHUB_TOKEN=... airbridge-ci approved prod
    """
    steps = parse(Checkout.find(root.resolve()).source(FILE).text).environment
    if environment not in steps:
        raise PromotionRefused(f"{FILE} has no environment {environment}: it has {', '.join(steps)}")
    needed = steps[environment].persons
    if needed == 1:
        output.report(f"{environment}: one person is enough")
        return
    persons = approvals.require(needed, environment, approvals.Run.current())
    output.report(f"{environment}: started or approved by {', '.join(sorted(persons))}")
