"""Tasks as another user than the agent, on a host where the agent is root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path.home()
REACHABLE = """
set -e
mkdir -p /run/airbridge-test
mount -t tmpfs tmpfs /run/airbridge-test
mkdir /run/airbridge-test/python
mount --bind "$1" /run/airbridge-test/python
mount -t tmpfs -o mode=755 tmpfs "$2"
mkdir -p "$1"
mount --bind /run/airbridge-test/python "$1"
shift 2
exec "$@"
"""
"""In a mount namespace: a home that is closed to others is covered by one in which only the interpreter is to be seen."""


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and unshare")
def test_task_user_is_separated() -> None:
    """Without Landlock the task user alone has no access to the agent's files, memory, process and code; warm and cold."""
    base = Path(sys.base_prefix)
    command = [sys.executable, "-m", "tests.integration.runner.as_another_user"]
    if base.is_relative_to(HOME) and not HOME.stat().st_mode & 0o001:
        script = ["sh", "-c", REACHABLE, "sh", str(base), str(HOME), *command]
        command = ["unshare", "--mount", "--propagation", "private", *script]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if "ermission denied" in ran.stderr and "mount" in ran.stderr:
        pytest.skip("mount namespaces are not to be had here")
    assert ran.returncode == 0, ran.stderr[-3000:]
    for uid, reached in json.loads(ran.stdout.splitlines()[-1]):
        assert uid not in {0, os.geteuid()}
        assert reached == []
