"""What a DAG written for LocalExecutor expects of the file system. test_examples.py gives it a variant for each executor."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonVirtualenvOperator
from airflow.sdk import DAG, task


def _adds() -> int:
    return 1 + 1


with DAG("file_expectations", schedule=None):

    @task
    def lists() -> list[list[str]]:
        """List the directories above any state directory; others make files in /tmp meanwhile."""
        os.listdir("/tmp")  # noqa: PTH208
        return [sorted(os.listdir(path)) for path in ("/", "/var", "/var/lib", "/home")]  # noqa: PTH208

    @task
    def writes() -> str:
        """Make files in each place that programs use; those in HOME and in tempfile's place may be the task's own."""
        for own in (Path.home(), tempfile.gettempdir()):
            with tempfile.TemporaryDirectory(dir=own) as folder:
                Path(folder, "file").write_text("x")
        made = [
            tempfile.mkdtemp(prefix="airbridge-", dir=place) for place in ("/tmp", "/var/tmp", "/dev/shm")
        ]
        for folder in made:
            Path(folder, "file").write_text("x")
        return ":".join(made)

    @task
    def reads(folders: str) -> list[str]:
        """Read what another task has left, and remove it."""
        found = []
        for folder in map(Path, folders.split(":")):
            found.append((folder / "file").read_text())
            (folder / "file").unlink()
            folder.rmdir()
        return found

    lists()
    reads(writes())
    BashOperator(
        task_id="shell", bash_command="ls / /var/lib >/dev/null && f=$(mktemp -p /tmp) && rm $f && echo done"
    )
    PythonVirtualenvOperator(task_id="virtualenv", python_callable=_adds, system_site_packages=False)
