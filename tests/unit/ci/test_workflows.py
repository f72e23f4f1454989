"""The workflows against the repository: what a hosted runner would meet at each step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKE = re.compile(r"\bmake((?: +(?:[a-z][a-z-]*|[A-Z_]+=[^\s;]+))+)")
#: Targets that make .venv before they need it are not enough: these leave the workspace's environment to `make setup`.
WITHOUT_WORKSPACE = {"synth", "infra-install", "infra-test", "infra-diff", "images-tools"}


def jobs() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for file in WORKFLOWS:
        for name, job in yaml.safe_load(file.read_text())["jobs"].items():
            if "steps" in job:
                found.append((f"{file.name}/{name}", job))
    return found


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def targets(text: str) -> list[str]:
    """Return the make targets of a script, in order."""
    return [word for match in MAKE.finditer(text) for word in match[1].split() if "=" not in word]


JOBS = jobs()


@pytest.mark.parametrize(("name", "job"), JOBS, ids=[name for name, _ in JOBS])
def test_tools_are_installed_first(name: str, job: dict[str, Any]) -> None:
    """`uv run --no-sync` finds an environment, and cdktf its packages, because an earlier step made them."""
    workspace = node = False
    for command in commands(job):
        for line in command.splitlines():
            workspace = workspace or any(target not in WITHOUT_WORKSPACE for target in targets(line))
            node = node or "infra-install" in targets(line)
            if "uv run --no-sync" in line:
                assert workspace, f"{name}: {line.strip()} before `make setup`"
            if "airbridge-ci deploy" in line or "npx" in line:
                assert node, f"{name}: {line.strip()} before `make infra-install`"


@pytest.mark.parametrize(("name", "job"), JOBS, ids=[name for name, _ in JOBS])
def test_errors_are_shown(name: str, job: dict[str, Any]) -> None:
    """No step hides its errors, or goes on after one."""
    for command in commands(job):
        for hidden in ("2>/dev/null", "|| true", "set +e"):
            assert hidden not in command, f"{name}: {hidden}"
    assert not any(step.get("continue-on-error") for step in job["steps"]), name


def test_named_targets_exist() -> None:
    """Every target that a workflow or .ci/run calls is one of the Makefile's."""
    makefiles = [ROOT / "Makefile", *(ROOT / "ci").glob("*.mk"), ROOT / "infra" / "infra.mk"]
    makefiles.append(ROOT / "tests" / "mutation" / "mutants.mk")
    known = {
        word
        for file in makefiles
        for match in re.finditer(r"^([a-z][a-z -]*):(?!=)", file.read_text(), re.MULTILINE)
        for word in match[1].split()
    }
    named = {target for _, job in JOBS for command in commands(job) for target in targets(command)}
    assert (named | set(targets(_ci_run()))) - known == set()


def test_workflows_run_all_of_ci_run() -> None:
    """A pull request runs every target that `.ci/run` runs on a contributor's machine."""
    verify = yaml.safe_load((ROOT / ".github" / "workflows" / "verify.yml").read_text())
    hosted = {
        target for job in verify["jobs"].values() for command in commands(job) for target in targets(command)
    }
    assert set(targets(_ci_run())) - hosted == set()


def test_both_pythons_run_the_tests() -> None:
    """Every supported minor version runs the whole suite."""
    verify = yaml.safe_load((ROOT / ".github" / "workflows" / "verify.yml").read_text())
    check = verify["jobs"]["check"]
    assert ["3.11", "3.12"] == check["strategy"]["matrix"]["python"]
    assert any("test" in targets(command) for command in commands(check))


def test_promotion_only_from_main() -> None:
    """The promotion is pushed to main as HEAD: from another branch it would carry that branch's commits along."""
    promote = yaml.safe_load((ROOT / ".github" / "workflows" / "promote.yml").read_text())
    for job in promote["jobs"].values():
        assert "github.ref == 'refs/heads/main'" in job["if"].split(" && ")


def _ci_run() -> str:
    return (ROOT / ".ci" / "run").read_text()
