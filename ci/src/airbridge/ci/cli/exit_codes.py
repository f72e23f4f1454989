"""Exit codes. 0 is success; what the others mean is shown by `airbridge-ci --help`."""

from __future__ import annotations

from airbridge.ci.exceptions import CiError, ManifestError, PromotionRefused, RolloutFailed

FAILED = 1
USAGE = 2
DISAGREEMENT = 3
REFUSED = 4
ROLLED_BACK = 5
DRIFT = 6

MEANING = (
    "Exit codes: 1 failed, 2 wrong usage, 3 parity or advisories disagree, 4 refused, 5 rolled back, 6 drift."
)


def code_of(error: CiError) -> int:
    """The exit code of an error."""
    if isinstance(error, RolloutFailed):
        return ROLLED_BACK
    if isinstance(error, PromotionRefused | ManifestError):
        return REFUSED
    return FAILED
