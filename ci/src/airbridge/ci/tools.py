"""Programs of others that the pipelines call: git, uv, buildah, skopeo, cosign, cdktf. One way to call them all."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from airbridge.ci.exceptions import ToolError

_LAST_WORDS = 30


class Run(Protocol):
    """Calls a program and returns what it wrote to standard output; ToolError if it fails."""

    def __call__(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
    ) -> str:
        """Run `command` in `cwd`; `env` replaces the environment as a whole where it is given."""


def run(
    *command: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
) -> str:
    """Call a program for real."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(  # noqa: S603  # no shell; the words are ours
            words,
            cwd=cwd,
            env=env,
            input=stdin if stdin is not None else b"",
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise ToolError(f"{words[0]} is not installed; `make images-tools` says how to get it") from error
    if done.returncode != 0:
        raise ToolError(_complaint(words, done.returncode, done.stderr + done.stdout))
    return done.stdout.decode(errors="replace")


def _complaint(words: Sequence[str], code: int, output: bytes) -> str:
    said = output.decode(errors="replace").strip().splitlines()[-_LAST_WORDS:]
    return "\n".join([f"`{shlex.join(words[:8])}{' …' if len(words) > 8 else ''}` ended with {code}:", *said])
