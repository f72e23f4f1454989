"""Result of one of the doctor's checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class CheckResult:
    """Result of one check."""

    check: str
    ok: bool
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)
