"""The uv command: how it is found, run and quoted. Its environment decides which index it uses; see `builder`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from airbridge.core.exceptions import BundleError
from airbridge.executor.bundles.source import redact

_SHOWN: Final = 2000
_SPACE: Final = re.compile(r"\s+")
_UNREACHED: Final = (
    "error sending request",
    "Request failed after",
    "timed out",
    "Failed to fetch",
    "dns error",
)


class UvFailed(BundleError):  # noqa: N818 - what happened
    """uv ended with an error; the message is uv's, on one line, without credentials."""


def run(arguments: list[str], folder: Path) -> str:
    """Run uv in a folder and return what it printed. Raises `UvFailed`."""
    command = [find(), *arguments, "--color", "never", "--no-progress"]
    done = subprocess.run(  # noqa: S603 - arguments are made here, and no shell is involved
        command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False, text=True
    )
    if done.returncode != 0:
        detail = summary(done.stderr) or f"uv ended with exit code {done.returncode}"
        raise UvFailed(detail, transient=any(sign in done.stderr for sign in _UNREACHED))
    return done.stdout


def find() -> str:
    """Return the path of the uv that this process's environment has. Raises `BundleError`."""
    beside = Path(sys.executable).with_name("uv")
    if beside.is_file():
        return str(beside)
    from uv import find_uv_bin

    try:
        return os.fspath(find_uv_bin())
    except FileNotFoundError as error:
        raise BundleError(
            f"environments need the uv command, a dependency of airbridge-executor: {error}"
        ) from error


def summary(stderr: str) -> str:
    """Return uv's error on one line: its causes joined, its notes left out."""
    kept = []
    for line in stderr.splitlines():
        text = line.strip().removeprefix("error:").removeprefix("cause:").strip()
        if text and not text.startswith(("Using ", "Resolved ", "warning:", "Prepared ", "Downloading")):
            kept.append(text)
    return redact(_SPACE.sub(" ", "; ".join(kept)))[:_SHOWN]
