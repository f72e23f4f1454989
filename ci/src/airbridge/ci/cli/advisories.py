"""`advisories`."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer

from airbridge.ci.advisories import checks
from airbridge.ci.advisories.statements import Advisories, load
from airbridge.ci.checkout import Checkout
from airbridge.ci.cli import exit_codes, output
from airbridge.ci.cli.images import Format, Root
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import as_annotations, as_json, as_text


def advisories(
    *,
    root: Root = Path(),
    check: Annotated[bool, typer.Option("--check", help="compare only, and fail on a difference")] = False,
    accepted: Annotated[
        bool, typer.Option("--accepted", help="print the ids that pip-audit may ignore, as its options")
    ] = False,
    style: Annotated[
        Format, typer.Option("--format", help="text, json, or github for annotations")
    ] = Format.TEXT,
) -> None:
    """Generate the page and the VEX document from ci/advisories.toml, or check them and uv.lock against it. Offline.

    Example: airbridge-ci advisories --check
    """
    checkout = Checkout.find(root.resolve())
    stated = load(checkout)
    if accepted:
        output.result("\n".join(f"--ignore-vuln={id_}" for id_ in stated.accepted()))
        return
    _report(stated, datetime.now(UTC).date())
    if check:
        _check(checkout, style)
        return
    for path, text in checks.generated(Facts(checkout), stated).items():
        target = checkout.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        output.report(f"wrote {path}")


def _report(stated: Advisories, today: date) -> None:
    sentence, stale = checks.age(stated, today)
    (output.complain if stale else output.report)(sentence)


def _check(checkout: Checkout, style: Format) -> None:
    findings = checks.check(checkout)
    show = {Format.TEXT: as_text, Format.JSON: as_json, Format.GITHUB: as_annotations}[style]
    if text := show(findings).rstrip("\n"):
        output.result(text)
    output.report(f"{len(findings)} disagreements" if findings else "every locked version is accounted for")
    if findings:
        raise typer.Exit(exit_codes.DISAGREEMENT)
