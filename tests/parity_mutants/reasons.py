"""Mutants that no gate finds, and why they cannot matter."""

from __future__ import annotations

import re

from tests.parity_mutants.places import Mutant

#: Kind and path as patterns, and the reason.
REASONS: tuple[tuple[str, str, str], ...] = ()


def of(mutant: Mutant) -> str | None:
    """The reason why a mutant cannot matter; None if there is none."""
    for kind, path, reason in REASONS:
        if re.fullmatch(kind, mutant.kind) and re.fullmatch(path, mutant.path):
            return reason
    return None
