"""Mutants that no gate finds, and why they cannot matter."""

from __future__ import annotations

import re

from tests.parity_mutants.places import Mutant

#: Kind, path and what is shown, as patterns, and the reason.
REASONS: tuple[tuple[str, str, str, str], ...] = (
    (
        "value emptied",
        r".*\.(?:md|py|html|js)|ci/scripts/images_tools\.sh|Makefile|pyproject\.toml",
        r".*",
        "a sentence that names no version states none; where the value is code, the file no longer runs",
    ),
    (
        "entry removed",
        r"infra/environments/prod\.release\.json",
        r".*schema.*",
        "schema 1 is the default of the reader, and part of what is signed",
    ),
    (
        "entry removed",
        r"compatibility\.toml|ci/rollout\.toml",
        r"'(?:outside = \"refuse\"|waves = \[\])\\n'.*",
        "the value of the file is also the default of its reader",
    ),
    (
        "(?:line|entry) removed",
        r"infra/environments/\w+\.toml",
        r"'previous_worker.*",
        "the worker before is refused at once: stricter, and what an environment looks like after a second promotion of one image",
    ),
    (
        "line removed",
        r"(?:infra/)?pyproject\.toml",
        r"'(?:module|patch|testpaths) = .*",
        "an exception from strict typing that is gone makes mypy stricter; tests are named by ci/scripts/test.sh",
    ),
    (
        "line (?:removed|twice)",
        r"Makefile|.*\.(?:sh|mk|toml|yml)",
        r"['\"]\s*#.*",
        "a comment that is gone or stands twice states nothing else",
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
        r"'(?!name = \"(?:prod|staging)|tier|account|home_region|certificate_arn|control_plane|worker|previous_worker|\[images).*",
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
