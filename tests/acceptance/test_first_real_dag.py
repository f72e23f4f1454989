"""The tutorial "Your first real DAG" works as it stands: its own code blocks are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import package_index
from tests.support.platform import LocalPlatform, running

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "first-real-dag.md"
# Locking and building may take this long, with every package to be fetched.
BUILD_SECONDS = 300.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The page's console blocks as scripts, but for those that start the platform and the shell."""
    scripts = [re.sub(r"^\$ ", "", block, flags=re.MULTILINE) for block in blocks("console")]
    return [script for script in scripts if not script.startswith("make ")]


def requirements() -> list[str]:
    [found] = re.findall(r"requirements\.txt <<'END'\n(.*?)^END$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return found.split()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where the package index of this machine lacks what the page names."""
    package_index.require(requirements(), tmp_path_factory.mktemp("index"))


def run_block(script: str, folder: Path, exported: dict[str, str]) -> str:
    """Run one block in a shell, as the page's reader does; what it exports is kept for the next."""
    marker = "--- environment ---"
    result = subprocess.run(
        ["bash", "-ec", f"{script}\necho '{marker}'\nenv -0 | tr '\\0\\n' '\\n '"],
        cwd=folder,
        env=exported,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    output, _, environment = result.stdout.partition(marker)
    exported.update(line.split("=", 1) for line in environment.splitlines() if "=" in line)
    return output


@pytest.mark.slow("make proof-packages")
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("index")
def test_page_works_as_it_stands(tmp_path: Path) -> None:
    """Its commands and its DAG, in two regions, give the result that it shows."""
    passed = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    passed["PATH"] = f"{Path(sys.executable).parent}:{passed['PATH']}"
    with running() as platform:
        (tmp_path / ".airbridge").symlink_to(platform.directory.root)
        outputs = []
        for script in commands():
            if "airflow dags" in script:
                platform.airflow.wait_for_dag("first_etl", BUILD_SECONDS)
            if "reports/november.csv" in script and "get_object" in script:
                _assert_placed(platform)
            outputs.append(run_block(script, tmp_path, passed))
        assert blocks("text")[-1].strip() == outputs[-1].strip()


def _assert_placed(platform: LocalPlatform) -> None:
    """Wait for the run; its tasks ran in the regions that the page says."""
    run = platform.finish("first_etl", "first", 180)
    assert run.state == "success", [platform.task_log(run, ti["task_id"]) for ti in run.tasks]
    regions = {task_id: region for (task_id, _), (region, _) in platform.places(run).items()}
    assert regions == {
        "sums_eu-west-1": "eu-west-1",
        "sums_us-east-1": "us-east-1",
        "report": "eu-west-1",
    }
