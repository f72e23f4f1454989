"""An environment's policy: what its tasks may do beyond their own, as the gateway reads it (docs/policy.md).

Here it is only carried; `airbridge policy check FILE` says whether its rules are right.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from airbridge.infra.exceptions import EnvironmentFileError

# What an SSM parameter of the advanced tier holds.
MOST_BYTES = 8192


def load(path: Path) -> str | None:
    """The policy's text, None where there is no file; EnvironmentFileError names the file and what is wrong with it."""
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EnvironmentFileError(f"{path}: {error}") from error
    if (size := len(text.encode())) > MOST_BYTES:
        raise EnvironmentFileError(f"{path}: is {size} bytes; a policy may have {MOST_BYTES}")
    return text
