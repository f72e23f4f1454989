"""The package index of the machine that runs the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest


def require(names: Iterable[str], folder: Path) -> None:
    """Skip the test if the index lacks one of the packages; its reason is uv's."""
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(names))
    resolve = [Path(sys.executable).with_name("uv"), "pip", "compile", "--no-deps", "--quiet", wanted]
    result = subprocess.run(resolve, capture_output=True, text=True, timeout=120, check=False)
    if result.returncode:
        pytest.skip(f"the package index lacks what the test needs: {result.stderr.strip()}")
