"""The checks in their order, and the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from airbridge.infra.preflight import capacity, given, identity, prepared, sites
from airbridge.infra.preflight.finding import Account, Check, Finding, Outcome

CHECKS: tuple[tuple[str, Check], ...] = (
    ("credentials", identity.credentials),
    ("region", identity.regions),
    ("service-linked role", identity.linked_roles),
    ("quota", capacity.quotas),
    ("zone", capacity.zones),
    ("instance type", capacity.instance_types),
    ("AMI", capacity.images_of_machines),
    ("database engine", capacity.engine),
    ("certificate", prepared.certificate),
    ("DNS", prepared.dns),
    ("image", prepared.images),
    ("secret", prepared.secrets),
    ("address range", prepared.ranges),
    ("given network", given.networks),
    ("site", sites.names),
)
_MEANT = {Outcome.FAILED, Outcome.UNKNOWN}


def look(account: Account) -> list[Finding]:
    """Make every check. Without working credentials of the right account the others would say nothing, and are left out."""
    found = list(_made("credentials", identity.credentials, account))
    if any(finding.outcome in _MEANT for finding in found):
        return found
    for name, check in CHECKS[1:]:
        found += _made(name, check, account)
    return found


def _made(name: str, check: Check, account: Account) -> Iterator[Finding]:
    try:
        yield from check(account)
    except (BotoCoreError, ClientError, ResponseParserError) as error:
        remedy = "allow the call (the policy ReadOnlyAccess does), and look again"
        yield Finding(name, account.environment.name, Outcome.UNKNOWN, f"AWS did not answer: {error}", remedy)


def blocked(findings: list[Finding]) -> bool:
    """Return whether a deployment would fail, or might: a check that could not be made counts."""
    return any(finding.outcome in _MEANT for finding in findings)


def as_text(findings: list[Finding]) -> str:
    """Return the report for people: a line a finding, the remedy below it, and a closing line."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.outcome:<8}{finding.check}: {finding.subject}: {finding.detail}")
        if finding.remedy:
            lines.append(f"        -> {finding.remedy}")
    counts = {outcome: sum(one.outcome is outcome for one in findings) for outcome in Outcome}
    closing = ", ".join(
        f"{count} {outcome}" for outcome, count in counts.items() if count or outcome is Outcome.FAILED
    )
    return "\n".join([*lines, f"preflight: {len(findings)} checks: {closing}"])


def as_data(findings: list[Finding]) -> dict[str, Any]:
    """Return the report for programs."""
    return {"blocked": blocked(findings), "findings": [asdict(finding) for finding in findings]}
