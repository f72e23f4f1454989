"""The runner of workflows: what a job's machine has, and how jobs and steps follow each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.workflows.hub import TOKEN, Hub
from tests.support.workflows.runner import Job, WorkflowRunner

from airbridge.ci.tools import run

CHECKOUT = "{uses: actions/checkout@x}"


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    """A repository with one commit, and a setting in each place."""
    work, bare = tmp_path / "work", tmp_path / "hub.git"
    run("git", "init", "--quiet", "-b", "main", str(work))
    for name in ("one", "two"):
        (work / name).write_text(name)
        run("git", "add", "-A", cwd=work)
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        run("git", *who, "commit", "--quiet", "-m", name, cwd=work)
    run("git", "clone", "--quiet", "--bare", str(work), str(bare))
    return Hub(
        repository=bare,
        work=tmp_path / "runner",
        variables={"": {"WHO": "everybody"}, "prod": {"WHO": "prod"}},
        secrets={"prod": {"KEY": "hush-hush"}},
    )


def jobs(hub: Hub, tmp_path: Path, text: str) -> dict[str, Job]:
    (tmp_path / "it.yml").write_text(f"on:\n  push: {{}}\npermissions: {{contents: read}}\njobs:\n{text}")
    return WorkflowRunner(hub, tmp_path).run("it.yml", {})


def test_checkout_is_of_the_event(hub: Hub, tmp_path: Path) -> None:
    """A job that begins after the branch has moved has the commit that started the workflow, as `github.sha` and checked out."""
    before = hub.revision
    moved: list[str] = []

    def move(workspace: Path) -> None:
        tree = run("git", "rev-parse", "main^{tree}", cwd=hub.repository).strip()
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        moved.append(
            run("git", *who, "commit-tree", tree, "-p", "main", "-m", "more", cwd=hub.repository).strip()
        )
        run("git", "update-ref", "refs/heads/main", moved[-1], cwd=hub.repository)

    hub.restore = move
    step = "{name: shown, run: 'echo $GITHUB_SHA ${{ github.sha }} $(git rev-parse HEAD)'}"
    checkout = "{uses: actions/checkout@x, with: {fetch-depth: 0}}"
    found = jobs(
        hub,
        tmp_path,
        f"""
  first:
    steps: [{CHECKOUT}, {step}]
  second:
    needs: first
    steps: [{checkout}, {step}]
""",
    )
    assert {f"{before} {before} {before}\n"} == {job.output("shown") for job in found.values()}
    assert hub.revision == moved[-1] != before


def test_failed_step_and_job(hub: Hub, tmp_path: Path) -> None:
    """After a failed step only `always()` runs; a job that needs the failed one is skipped, unless it asks for its result."""
    found = jobs(
        hub,
        tmp_path,
        """
  first:
    steps: [{run: exit 3}, {name: next, run: "true"}, {name: last, if: always(), run: echo still}]
  second:
    needs: first
    steps: [{run: "true"}]
  third:
    needs: [first]
    if: always() && needs.first.result == 'failure'
    steps: [{run: "true"}]
""",
    )
    assert {name: job.result for name, job in found.items()} == {
        "first": "failure",
        "second": "skipped",
        "third": "success",
    }
    assert found["first"].outcomes() == {"exit 3": "failure", "next": "skipped", "last": "success"}
    assert found["first"].output("last") == "still\n"


def test_environment_and_matrix(hub: Hub, tmp_path: Path) -> None:
    """Variables are the environment's, secrets are masked, and a job runs once for each combination, on a machine of its own."""
    found = jobs(
        hub,
        tmp_path,
        """
  it:
    environment: prod
    strategy: {matrix: {python: ["3.11", "3.12"]}}
    steps:
      - name: say
        env: {KEY: "${{ secrets.KEY }}"}
        run: echo "${{ vars.WHO }} ${{ matrix.python }} $KEY"; pwd
""",
    )
    said = [step.output.splitlines() for step in found["it"].steps]
    assert [lines[0] for lines in said] == ["prod 3.11 ***", "prod 3.12 ***"]
    assert len({lines[1] for lines in said}) == 2


def test_artifacts_pass_between_jobs(hub: Hub, tmp_path: Path) -> None:
    """What one job uploads another downloads; nothing else of its machine is there."""
    found = jobs(
        hub,
        tmp_path,
        f"""
  one:
    steps:
      - {CHECKOUT}
      - {{uses: actions/upload-artifact@x, with: {{name: it, path: "one", if-no-files-found: error}}}}
  two:
    needs: one
    steps:
      - {{uses: actions/download-artifact@x, with: {{name: it, path: got}}}}
      - {{name: list, run: "find . -type f"}}
  three:
    steps: [{{uses: actions/download-artifact@x, with: {{name: none}}}}]
  four:
    steps: [{{uses: actions/upload-artifact@x, with: {{name: it, path: none, if-no-files-found: error}}}}]
""",
    )
    assert found["two"].output("list") == "./got/one\n"
    assert (found["three"].result, found["four"].result) == ("failure", "failure")


def test_permissions(hub: Hub, tmp_path: Path) -> None:
    """A clone is one commit deep; only a job that may write pushes, with its token; credentials need the job's identity."""
    push = f"git push --quiet https://x-access-token:{TOKEN}@github.com/airbridge/airbridge.git HEAD:other"
    found = jobs(
        hub,
        tmp_path,
        f"""
  reads:
    steps: [{CHECKOUT}, {{name: count, run: git rev-list --count HEAD}}, {{name: push, run: {push!r}}}]
  writes:
    permissions: {{contents: write}}
    steps: [{CHECKOUT}, {{name: push, run: {push!r}}}]
  nothing:
    permissions: {{}}
    steps: [{CHECKOUT}]
  anonymous:
    steps: [{{uses: aws-actions/configure-aws-credentials@x, with: {{role-to-assume: r, aws-region: us-east-1}}}}]
  unknown:
    steps: [{{uses: someone/something@x}}]
""",
    )
    assert found["reads"].output("count") == "1\n"
    results = {name: job.result for name, job in found.items()}
    assert results.pop("writes") == "success"
    assert set(results.values()) == {"failure"}
    assert run("git", "rev-parse", "other", cwd=hub.repository) == run(
        "git", "rev-parse", "main", cwd=hub.repository
    )
