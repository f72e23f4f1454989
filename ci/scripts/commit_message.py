"""Form of a commit message: ``python3 ci/scripts/commit_message.py FILE``, as git's hook commit-msg calls it.

The subject has at most 72 characters and no full stop, an empty line follows, and the body gives the reason.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

LONGEST_SUBJECT = 72
# Written by git, and rewritten before they land.
BY_GIT = re.compile(r"(Merge|Revert|fixup!|squash!|amend!) ?")
# `git commit --verbose` puts the diff below this line.
SCISSORS = "# ------------------------ >8 ------------------------"


def problems(message: str) -> Iterator[str]:
    """Yield what is wrong with a message."""
    text = message.split(SCISSORS, maxsplit=1)[0]
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    subject = lines[0] if lines else ""
    if BY_GIT.match(subject):
        return
    if not subject.strip():
        yield "the subject is empty"
    if len(subject) > LONGEST_SUBJECT:
        yield f"the subject has {len(subject)} characters, at most {LONGEST_SUBJECT} may be: {subject}"
    if subject.endswith("."):
        yield "the subject ends with a full stop"
    if len(lines) > 1 and lines[1].strip():
        yield "no empty line follows the subject"


def main() -> int:
    """Check the message in the file that is given."""
    found = list(problems(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
