"""Task policy of an environment: permissions of its tasks, as the gateway reads it (docs/reference/policy.md).

It is passed on unchecked; `airbridge policy check FILE` checks its rules.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from airbridge.infra.exceptions import EnvironmentFileError

# The gateway's task definition has it, packed, beside the region catalogue.
MOST_BYTES = 65_536


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
