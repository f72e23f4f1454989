"""Mutants that no gate finds, and why they cannot matter."""

from __future__ import annotations

import re

from tests.parity_mutants.places import Mutant

#: Kind, path and what is shown, as patterns, and the reason.
REASONS: tuple[tuple[str, str, str, str], ...] = (
    (
        "value emptied",
        r".*\.(?:md|py|html|js)|ci/scripts/images_tools\.sh|Makefile",
        r".*",
        "a sentence that names no version states none; where the value is code, the file no longer runs",
    ),
    (
        "value (?:last number higher|other|truncated|wildcard)",
        r".*",
        r"'3\.1[12]' -> '3\.1[12]'",
        "the other Python that is supported: true of both",
    ),
    (
        "entry removed|key twice",
        r"infra/environments/(?:prod|staging)\.toml",
        r"'(?!name|tier|account|home_region|certificate_arn|control_plane|worker|previous_worker|\[images).*",
        "a setting of the infrastructure and no fact: airbridge.infra.environment has its default or asks for it (make synth, tests/infra)",
    ),
)


def of(mutant: Mutant) -> str | None:
    """The reason why a mutant cannot matter; None if there is none."""
    for kind, path, shown, reason in REASONS:
        if (
            re.fullmatch(kind, mutant.kind)
            and re.fullmatch(path, mutant.path)
            and re.fullmatch(shown, mutant.shown, re.DOTALL)
        ):
            return reason
    return None
