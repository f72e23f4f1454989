"""Drift: changes that Terraform would make in an environment without an intended change."""

from __future__ import annotations

import json
from pathlib import Path

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import CheckoutError
from airbridge.ci.tools import Run

_PLAN = "drift.tfplan"


def find(checkout: Checkout, environment: str, run: Run) -> dict[str, list[str]]:
    """Addresses that a plan would change, by stack. The stacks must have been synthesised."""
    folders = sorted((checkout.root / "infra" / "cdktf.out" / environment / "stacks").glob("*"))
    if not folders:
        raise CheckoutError(f"infra/cdktf.out/{environment}: no stacks; `make synth` writes them")
    return {folder.name: _changes(folder, run) for folder in folders}


def _changes(stack: Path, run: Run) -> list[str]:
    run("terraform", "init", "-input=false", "-no-color", cwd=stack)
    run("terraform", "plan", "-input=false", "-no-color", "-lock=false", f"-out={_PLAN}", cwd=stack)
    plan = json.loads(run("terraform", "show", "-json", _PLAN, cwd=stack))
    (stack / _PLAN).unlink(missing_ok=True)
    return [
        f"{change['address']} ({'/'.join(change['change']['actions'])})"
        for change in plan.get("resource_changes", ())
        if change["change"]["actions"] not in (["no-op"], ["read"])
    ]
