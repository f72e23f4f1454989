"""DAGs whose values stay in the region: stored XComs, of one region and read from another."""

from __future__ import annotations

import hashlib
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, get_current_context, task

from airbridge.core.residency.xcoms import XComFile

MIB = 1024 * 1024
CANARY = "canary-of-an-xcom-b1946ac92492d2347c6235b4d2611184"
EU = {"queue": "eu-west-1"}


def peak_mib() -> int:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


with DAG("sovereign_values", schedule=None):

    @task(**EU)
    def make() -> list[dict[str, Any]]:
        return [{"number": number, "text": CANARY} for number in range(1000)]

    @task(**EU)
    def use(rows: list[dict[str, Any]]) -> int:
        assert all(row["text"] == CANARY for row in rows)
        return len(rows)

    @task(**EU)
    def names() -> list[str]:
        return [f"{number:04}{CANARY}" * 20 for number in range(4)]

    @task(**EU)
    def measure(name: str) -> int:
        return len(name)

    @task(**EU)
    def total(lengths: Any) -> int:
        return sum(lengths)

    @task(**EU)
    def small() -> str:
        return "travels"

    @task(**EU)
    def echo(name: str) -> str:
        return name

    @task(**EU)
    def gather(values: Any) -> list[str]:
        return [value[:4] for value in values]

    use(make())
    listed = names()
    total(measure.expand(name=listed))
    gather(echo.expand(name=listed))
    small()

with DAG("sovereign_file", schedule=None, params={"mib": 64}):

    @task(**EU)
    def write() -> XComFile:
        size = int(get_current_context()["params"]["mib"])
        path = Path(tempfile.gettempdir(), "large")
        with path.open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(1024) * 1024)
        get_current_context()["ti"].xcom_push("digest", _digest(path))
        get_current_context()["ti"].xcom_push("before", peak_mib())
        return XComFile(path)

    @task(**EU)
    def read(large: XComFile) -> dict[str, Any]:
        context = get_current_context()
        before = peak_mib()
        assert _digest(large.path) == context["ti"].xcom_pull(task_ids="write", key="digest")
        return {"bytes": large.path.stat().st_size, "peak_mib": peak_mib(), "after_load_mib": before}

    def _digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    read(write())

for name in ("sovereign_abroad_allowed", "sovereign_abroad_refused"):
    with DAG(name, schedule=None):

        @task(**EU)
        def value() -> str:
            return CANARY * 100

        @task(queue="us-east-1")
        def elsewhere(text: str) -> int:
            assert text == CANARY * 100
            return len(text)

        elsewhere(value())
