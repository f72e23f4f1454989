"""ci/scripts/commit_message.py: the form of commit messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "ci" / "scripts" / "commit_message.py"


def check(tmp_path: Path, message: str) -> tuple[int, str]:
    """Exit status and findings for a message."""
    (tmp_path / "message").write_text(message)
    command = [sys.executable, str(SCRIPT), str(tmp_path / "message")]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    return ran.returncode, ran.stderr


@pytest.mark.parametrize(
    "message",
    [
        "A" * 72,
        "Add a thing\n\nBecause it was missing, in a body of lines that may be as long as their writer needs them to be.\n",
        "# a comment of git's template\nAdd a thing\n# another\n\nWhy\n",
        f"Merge branch '{'x' * 80}'",
        f"fixup! {'x' * 80}",
        "Add a thing\n# ------------------------ >8 ------------------------\ndiff --git a b\n",
    ],
)
def test_good_message_passes(tmp_path: Path, message: str) -> None:
    """Up to 72 characters, an empty line, a body; comments, diffs and git's own subjects are left alone."""
    assert check(tmp_path, message) == (0, "")


@pytest.mark.parametrize(
    ("message", "finding"),
    [
        ("A" * 73, "73 characters"),
        ("", "empty"),
        ("# only a comment\n", "empty"),
        ("Add a thing.", "full stop"),
        ("Add a thing\nand another\n", "no empty line"),
    ],
)
def test_bad_message_fails(tmp_path: Path, message: str, finding: str) -> None:
    """The finding names the correction."""
    status, findings = check(tmp_path, message)
    assert status == 1
    assert finding in findings
