"""A view of the file system covers what is hidden, for root and for a user without privileges."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airbridge.core.sandbox import mounts

NOBODY = 65534

CHILD = """
import json, os, sys
from pathlib import Path
from airbridge.core.sandbox import hardening, mounts

root, uid = Path(sys.argv[1]), int(sys.argv[2])
state = root / "deep" / "state"
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
os.chdir(state)
hardening.harden()
mounts.enter(mounts.View(
    covered=(str(state),),
    shown=(
        mounts.Shown(str(state / "code"), str(state / "code")),
        mounts.Shown(str(state / "t" / "dag"), str(state / "work" / "dag"), writable=True),
        mounts.Shown(str(state / "missing"), str(state / "missing")),
    ),
    pinned=(str(root / "deep"),),
    links=((str(state / "link"), str(state / "work")),),
))
(state / "link" / "dag" / "new").write_text("x")

def fails(attempt):
    try:
        attempt()
    except OSError:
        return True
    return False

json.dump({
    "state": sorted(os.listdir(state)),
    "working directory": sorted(os.listdir(".")),
    "beside": sorted(os.listdir(root)),
    "refused": [
        fails((state / "journal").read_bytes),
        fails(lambda: (state / "code" / "new").write_text("x")),
        fails(lambda: (state / "code" / "a.py").chmod(0o777)),
        fails(lambda: (state / "new").write_text("x")),
        fails(lambda: (root / "deep").rename(root / "moved")),
        fails(lambda: state.rename(root / "moved")),
    ],
}, sys.stdout)
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that any user reaches."""
    folder = Path(tempfile.mkdtemp(prefix="airbridge-", dir="/var/tmp"))
    state = folder / "deep" / "state"
    for name in ("code", "t/dag"):
        (state / name).mkdir(parents=True)
    (state / "code" / "a.py").write_text("x")
    (state / "journal").write_text("a grant")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("uid", [os.geteuid(), NOBODY])
def test_view_covers_what_is_hidden(root: Path, uid: int) -> None:
    """What is covered is neither seen nor moved, what is shown is read-only or writable, and all else is as it was."""
    if uid != os.geteuid() and os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    if not mounts.available(uid if os.geteuid() == 0 else None):
        pytest.skip("processes can have no mounts of their own here")
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, uid, uid)
    command = [sys.executable, "-c", CHILD, str(root), str(uid)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {
        "state": ["code", "link", "work"],
        "working directory": ["code", "link", "work"],
        "beside": ["deep"],
        "refused": [True] * 6,
    }
    assert (root / "deep" / "state" / "t" / "dag" / "new").read_text() == "x"
