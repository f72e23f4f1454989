"""A build as its parent asks for it, and its result: JSON files in the scratch directory that both have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

JOB: Final = "job.json"
RESULT: Final = "result.json"
FILES: Final = "files"
ARCHIVES: Final = "archives"


@dataclass(frozen=True)
class Job:
    """Order to lock and build.

    `constraints` are the platform's packages (name to version), `base` the names of those that every worker has. `python` and `machines` are
    the platforms; a machine other than this one is built for by the tags of its wheels.
    """

    main: str
    constraints: Mapping[str, str]
    base: tuple[str, ...]
    python: str
    machines: tuple[str, ...]
    sdists: bool
    max_bytes: int
    has_index: bool = True
    readable: tuple[str, ...] = ()
    required: bool = False

    def write(self, scratch: Path) -> None:
        """Write the job into the scratch directory."""
        (scratch / JOB).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, scratch: Path) -> Self:
        """Read the job of the scratch directory."""
        data: dict[str, Any] = json.loads((scratch / JOB).read_text())
        tuples = {name: tuple(data[name]) for name in ("base", "machines", "readable")}
        return cls(**{**data, **tuples})
