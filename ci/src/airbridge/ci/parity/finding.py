"""A disagreement, and how it is shown: as text, as JSON, and as annotations of a pull request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """One place that disagrees. `actual` is the value found, `expected` the right one."""

    path: str
    line: int
    check: str
    actual: str
    expected: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.check}: {self.actual}; {self.expected}"


def as_text(findings: Sequence[Finding]) -> str:
    """One line a finding."""
    return "".join(f"{finding}\n" for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """An object with the findings and their number."""
    content = {"findings": [asdict(finding) for finding in findings], "count": len(findings)}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_annotations(findings: Sequence[Finding]) -> str:
    """GitHub's workflow commands: each finding appears at its line of the pull request."""
    return "".join(
        f"::error file={_property(finding.path)},line={finding.line},title={_property(finding.check)}"
        f"::{_data(f'{finding.actual}; {finding.expected}')}\n"
        for finding in findings
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
