"""All checks, in one call."""

from __future__ import annotations

from airbridge.ci.checkout import Checkout
from airbridge.ci.images.assemble import Output
from airbridge.ci.parity import built, dockerfiles, environments, lock, matrix, packages, stacks, workflows
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding

_SOURCES = (packages, lock, matrix, dockerfiles, environments, stacks, workflows)


def check(checkout: Checkout, output: Output | None = None, *, synthesised: bool = True) -> list[Finding]:
    """Every disagreement in the sources, and in a build's output where one is given, in the files' order.

    `synthesised`: also in the stacks that were synthesised from them, if there are any.
    """
    facts = Facts(checkout)
    findings = {finding for module in _SOURCES for finding in module.check(facts)}
    if synthesised:
        findings |= set(stacks.check_synthesised(facts))
    if output is not None:
        findings |= set(built.check(facts, output))
    return sorted(findings)
