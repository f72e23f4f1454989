"""Comparison of a scanner's findings with the exceptions that the stacks declare beside each resource.

    python -m airbridge.infra.tools.scan cdktf.out/prod --checkov checkov

A stack is scanned as synthesised, and as planned too where there is a plan (`plan.json` in its directory, made by `terraform
show -json`): each way the scanner finds something that it misses the other way. A finding without an exception fails; so
does an unused exception, where there is a plan to prove it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airbridge.infra.constructs.checks import COMMENT
from airbridge.infra.exceptions import CommandFailedError, InfraError


@dataclass(frozen=True, order=True)
class ScanFinding:
    """A check that failed for a resource."""

    stack: str
    resource: str
    check: str
    name: str = ""


@dataclass(frozen=True)
class ScanResult:
    """Result of a scan of some stacks."""

    passed: int
    accepted: Mapping[ScanFinding, str]
    unaccepted: Sequence[ScanFinding]
    unneeded: Sequence[ScanFinding]

    @property
    def clean(self) -> bool:
        """Return whether every finding has an exception, and every exception a finding."""
        return not self.unaccepted and not self.unneeded


def judge(passed: int, findings: Iterable[ScanFinding], accepted: Mapping[ScanFinding, str]) -> ScanResult:
    """Hold findings against acceptances; both by stack, resource and check."""
    keys = {ScanFinding(each.stack, each.resource, each.check): each for each in findings}
    return ScanResult(
        passed=passed,
        accepted={key: accepted[key] for key in sorted(keys) if key in accepted},
        unaccepted=[keys[key] for key in sorted(keys) if key not in accepted],
        unneeded=sorted(key for key in accepted if key not in keys),
    )


def acceptances(stack: str, synthesised: Mapping[str, Any]) -> Iterator[tuple[ScanFinding, str]]:
    """Exceptions of a stack, read from its JSON."""
    for kind, resources in synthesised.get("resource", {}).items():
        for name, resource in resources.items():
            for check, reason in resource.get("//", {}).get(COMMENT, {}).items():
                yield ScanFinding(stack, f"{kind}.{name}", check), reason


def scan(checkov: str, directory: Path, framework: str) -> tuple[int, list[tuple[str, str, str]]]:
    """Passed checks, and failed ones as (resource, check, name)."""
    where = ["-d", str(directory)] if framework == "terraform_json" else ["-f", str(directory / "plan.json")]
    command = [
        *shlex.split(checkov),
        *where,
        "--framework",
        framework,
        "--skip-download",
        "--compact",
        "--quiet",
        "-o",
        "json",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603  # no shell, named paths
    try:
        report = json.loads(done.stdout)
    except ValueError as error:
        raise CommandFailedError(f"{' '.join(command)}: {done.stderr or done.stdout}") from error
    reports = report if isinstance(report, list) else [report]
    passed = sum(each.get("summary", each).get("passed", 0) for each in reports)
    failed = [item for each in reports for item in each.get("results", {}).get("failed_checks", [])]
    return passed, [(item["resource"], item["check_id"], item["check_name"]) for item in failed]


def examine(checkov: str, environment: Path) -> ScanResult:
    """Scan every stack of a synthesised environment."""
    verdicts = [examine_stack(checkov, directory) for directory in sorted((environment / "stacks").iterdir())]
    whole = ScanResult(
        passed=sum(each.passed for each in verdicts),
        accepted={finding: reason for each in verdicts for finding, reason in each.accepted.items()},
        unaccepted=[finding for each in verdicts for finding in each.unaccepted],
        unneeded=[finding for each in verdicts for finding in each.unneeded],
    )
    if whole.passed == 0:
        raise CommandFailedError(f"{environment}: the scanner looked at nothing; synthesise first")
    return whole


def examine_stack(checkov: str, directory: Path) -> ScanResult:
    """Scan one stack, as synthesised and, if there is a plan, as planned."""
    synthesised = json.loads((directory / "cdk.tf.json").read_text())
    planned = (directory / "plan.json").exists()
    scans = [scan(checkov, directory, "terraform_json")]
    if planned:
        scans.append(scan(checkov, directory, "terraform_plan"))
    kinds = {name: kind for kind, named in synthesised.get("resource", {}).items() for name in named}
    findings = [
        ScanFinding(directory.name, _address(resource, kinds), check, name)
        for _, failed in scans
        for resource, check, name in failed
    ]
    verdict = judge(
        sum(passed for passed, _ in scans), findings, dict(acceptances(directory.name, synthesised))
    )
    # Many findings appear only in a plan: without one it is unknown which exemptions are not needed.
    return verdict if planned else replace(verdict, unneeded=())


def _address(resource: str, kinds: Mapping[str, str]) -> str:
    """In the JSON the scanner names a resource without its type."""
    kind, _, name = resource.partition(".")
    return f"{kinds[name]}.{name}" if kind == "resource" and name in kinds else resource


def main(arguments: Sequence[str] | None = None) -> int:
    """Scan and report; 0 if clean."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.scan", description="Scan synthesised stacks."
    )
    parser.add_argument("environment", type=Path, help="a directory of synthesised stacks, as cdktf.out/prod")
    parser.add_argument("--checkov", default="checkov", help="the scanner's command")
    options = parser.parse_args(arguments)
    try:
        verdict = examine(options.checkov, options.environment)
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    for finding in verdict.unaccepted:
        sys.stdout.write(f"NOT ACCEPTED {finding.stack} {finding.resource} {finding.check} {finding.name}\n")
    for finding in verdict.unneeded:
        sys.stdout.write(f"NOT NEEDED   {finding.stack} {finding.resource} {finding.check}\n")
    summary = f"{verdict.passed} passed, {len(verdict.accepted)} accepted with a reason, "
    sys.stdout.write(f"{summary}{len(verdict.unaccepted)} not accepted, {len(verdict.unneeded)} not needed\n")
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
