"""Tasks on a host whose /proc is mounted with hidepid, which shows a worker no process that is not dumpable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.runner.test_task_user import HOME, REACHABLE
from tests.integration.runner.with_hidden_processes import UID

# In a PID namespace of its own: before Linux 5.8 the option is the namespace's, not the mount's.
HIDDEN = 'mount -t proc -o hidepid=2 proc /proc && "$@"'


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and unshare")
def test_tasks_run_where_processes_are_hidden() -> None:
    """A worker without privileges runs tasks, warm and cold, and answers root's request for its status."""
    base = Path(sys.base_prefix)
    command = [
        "sh",
        "-c",
        HIDDEN,
        "sh",
        sys.executable,
        "-m",
        "tests.integration.runner.with_hidden_processes",
    ]
    if base.is_relative_to(HOME) and not HOME.stat().st_mode & 0o001:
        command = ["sh", "-c", REACHABLE, "sh", str(base), str(HOME), *command]
    namespaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    ran = subprocess.run([*namespaces, *command], check=False, capture_output=True, text=True, timeout=120)
    if "ermission denied" in ran.stderr and "mount" in ran.stderr:
        pytest.skip("mount namespaces are not to be had here")
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found == {"status": {"worker": "edge-7"}, "tasks": [[UID, False], [UID, False]]}
