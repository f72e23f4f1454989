"""All checks, in one call."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import CiError
from airbridge.ci.images.assemble import Output
from airbridge.ci.parity import (
    built,
    dockerfiles,
    environments,
    lock,
    matrix,
    packages,
    pipelines,
    policy,
    stacks,
    workflows,
)
from airbridge.ci.parity.facts import Facts
from airbridge.ci.parity.finding import Finding
from airbridge.ci.parity.inventory import scan

Check = Callable[[Facts], Iterator[Finding]]

#: Every check of the sources, by name.
SOURCES: dict[str, Check] = {
    "packages": packages.check,
    "lock": lock.check,
    "matrix": matrix.check,
    "dockerfiles": dockerfiles.check,
    "environments": environments.check,
    "policy": policy.check,
    "stacks": stacks.check,
    "workflows": workflows.check,
    "pipelines": pipelines.check,
    "inventory": scan.check,
}


def check(checkout: Checkout, output: Output | None = None, *, synthesised: bool = True) -> list[Finding]:
    """Every disagreement in the sources, and in a build's output where one is given, in the files' order.

    `synthesised`: also in the stacks that were synthesised from them, if there are any.
    """
    facts = Facts(checkout)
    findings = {finding for each in SOURCES.values() for finding in guarded(each, facts)}
    if synthesised:
        findings |= set(guarded(stacks.check_synthesised, facts))
    if output is not None:
        findings |= set(built.check(facts, output))
    return sorted(findings)


def guarded(check: Check, facts: Facts) -> list[Finding]:
    """The findings of one check; a file that it cannot read is a finding, too."""
    found: list[Finding] = []
    try:
        found.extend(check(facts))
    except CiError as error:
        found.append(unreadable(error))
    except (ValueError, LookupError, TypeError, AttributeError, SyntaxError) as error:
        # A value of a form that the check does not know: the inventory names its file and line.
        module = f"ci/src/{check.__module__.replace('.', '/')}.py"
        actual = f"cannot read a value: {type(error).__name__}: {error}"
        found.append(Finding(module, 1, "unreadable", actual, "mend the file that the other findings name"))
    return found


def unreadable(error: CiError) -> Finding:
    """The finding that a file cannot be read, on the line that the error names."""
    text = str(error).replace("\n", "; ")
    path, _, said = text.partition(": ")
    line = re.search(r"line (\d+)", said)
    return Finding(
        path, int(line[1]) if line else 1, "unreadable", said or text, "must be a valid file, each key once"
    )
