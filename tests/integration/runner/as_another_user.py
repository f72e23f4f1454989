"""A runner whose tasks run as another system user, without Landlock, under a umask; see test_task_user.py.

``python -m tests.integration.runner.as_another_user 077``
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from tests.integration.runner.world import World

from airbridge.edge_worker.runner.sandbox.task_user import TaskUser

DAG = """
import os
from datetime import datetime
from pathlib import Path
from airflow.sdk import DAG, task

def works(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def t():
        Path("mine").write_text("x")
        reached = [name for name, attempt in {
            "the agent's file": lambda: open(FILE),
            "the agent's memory": lambda: open(f"/proc/{AGENT}/mem", "rb"),
            "the agent's environment": lambda: open(f"/proc/{AGENT}/environ", "rb").read(),
            "a signal to the agent": lambda: os.kill(AGENT, 0),
            "a place beside its own": lambda: Path("../planted").touch(),
            "the code": lambda: open(__file__, "a"),
        }.items() if works(attempt)]
        return [os.getuid(), reached]
    t()
"""


def main() -> None:
    """Run the task warm and cold, and print what it found as JSON."""
    os.umask(int(sys.argv[1], 8))
    with tempfile.TemporaryDirectory(prefix="airbridge-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        (folder / "journal").write_text("a grant")
        (folder / "journal").chmod(0o600)
        world = World(folder, task_user=TaskUser.named("nobody"), landlock=False)
        # As the worker's cache of code has it.
        umask = os.umask(0o022)
        root = world.write(f"FILE, AGENT = {str(folder / 'journal')!r}, {os.getpid()}\n{DAG}")
        os.umask(umask)
        found = [world.do(world.run(root, "t", warm=warm)).proxy.pushed() for warm in (True, False)]
        world.close()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
