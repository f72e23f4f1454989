"""Tasks as another user than the agent, on a host where the agent is root."""

from __future__ import annotations

import json
import os
import pwd
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


pytestmark = [
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root, and unshare"
    ),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv"),
]


def run(*privileges: str, umask: str = "022") -> subprocess.CompletedProcess[str]:
    """Run tasks as another user, by an agent with these privileges (of setpriv; none: root's)."""
    base = Path(sys.base_prefix)
    command = [sys.executable, "-m", "tests.integration.runner.as_another_user", umask]
    if privileges:
        command = ["setpriv", *privileges, *command]
    if base.is_relative_to(HOME) and not HOME.stat().st_mode & 0o001:
        script = ["sh", "-c", REACHABLE, "sh", str(base), str(HOME), *command]
        command = ["unshare", "--mount", "--propagation", "private", *script]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    if "ermission denied" in ran.stderr and "mount" in ran.stderr:
        pytest.skip("mount namespaces are not to be had here")
    return ran


@pytest.mark.parametrize("umask", ["022", "077"])
def test_task_user_is_separated(umask: str) -> None:
    """Without Landlock the task user alone has no access to the agent's files, memory, process and code; warm and cold, under any umask."""
    ran = run(umask=umask)
    assert ran.returncode == 0, ran.stderr[-3000:]
    for uid, reached in json.loads(ran.stdout.splitlines()[-1]):
        assert uid not in {0, os.geteuid()}
        assert reached == []


def test_agent_must_be_root() -> None:
    """An agent with capabilities, which its tasks would keep, is refused at its start."""
    wanted = ",".join(f"+{name}" for name in ("chown", "kill", "setgid", "setuid"))
    daemon = ("--reuid=daemon", "--regid=daemon", "--clear-groups")
    ran = run(*daemon, f"--inh-caps={wanted}", f"--ambient-caps={wanted}")
    assert ran.returncode != 0, ran.stdout
    assert "task_user 'nobody' needs an agent that is root with CAP_CHOWN" in ran.stderr, ran.stderr[-3000:]
    assert f"this one has uid {pwd.getpwnam('daemon').pw_uid}: start it as root" in ran.stderr


def test_missing_capability_is_named() -> None:
    """An agent that is root in a container without a capability that it needs is refused at its start."""
    ran = run("--bounding-set=-dac_override")
    assert ran.returncode != 0, ran.stdout
    assert "this one lacks CAP_DAC_OVERRIDE, which its container" in ran.stderr, ran.stderr[-3000:]
