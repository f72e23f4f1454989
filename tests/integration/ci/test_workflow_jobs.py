"""promote.yml as GitHub reads it: its jobs on a runner of our own, over a bare repository and fleets behind HTTP.

Real are the YAML, git, `airbridge-ci promote` and `deploy`. Stand-ins, as programs on PATH: `make` (set-up; `synth` brings back the stacks of the
project), `npx` (as cdktf in `test_deploy`), `aws` and `skopeo` of the copy, which `test_copies` and `test_ecr` show with registries.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.ci.test_deploy import CI, World, project, serving
from tests.support.workflows.hub import Hub
from tests.support.workflows.reviews import RUN_ID, Review, serving_reviews
from tests.support.workflows.runner import Job, WorkflowRunner
from tests.unit.ci.tree import ROOT, Tree, git

from airbridge.ci.release import pins
from airbridge.ci.rollout.testing import Behaviour, Fleet
from airbridge.ci.tools import run

__all__ = ["project"]  # a fixture

ENVIRONMENTS = ("dev", "staging", "prod")
# Sends the role's cloud a stack's new image digest.
CDKTF = """
import json, os, re, sys, urllib.request
text = open(f"environments/{os.environ['ENVIRONMENT_OF_ROLE']}.toml").read()
digest = re.search(r'^worker = "edge-worker@(sha256:[0-9a-f]+)"', text, re.M)[1]
body = json.dumps({"stack": sys.argv[-1], "digest": digest}).encode()
request = urllib.request.Request(os.environ["CLOUD"] + "/cloud", data=body, method="POST")
urllib.request.urlopen(request).read()
"""
OPERATOR_TOKEN = "abo_of_operators"
DAY = timedelta(days=1).total_seconds()


@dataclass
class Pipeline:
    """The project in a hub, and each environment's platform."""

    project: Tree
    hub: Hub
    worlds: Mapping[str, World]
    #: Reviews of the workflow's runs, the newest first.
    reviews: list[Review]

    def promote(self, source: str, target: str, **options: bool) -> dict[str, Job]:
        """Run promote.yml, as somebody who fills in its form does, or main.yml for the source `build`."""
        called = source == "build"
        runner = WorkflowRunner(self.hub, self.project.root / ".github/workflows")
        return runner.run("promote.yml", {"source": source, "target": target, **options}, called=called)

    def release(self, number: int) -> str:
        """Put a release into the artifact that main.yml's job leaves; return its workers' digest."""
        folder = self.hub.artifacts / "release"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "release.json").write_text(self.project.release(number).text())
        return self.digest(number)

    def digest(self, number: int) -> str:
        """The workers' digest of a release."""
        return self.project.release(number).release.images["edge-worker"].digest

    def running(self, environment: str) -> set[str]:
        """The digests of an environment's workers."""
        fleet = self.worlds[environment].fleet
        return {digest for region in fleet.regions for digest in fleet.running(region)}

    def pinned(self, environment: str) -> str:
        """The workers' digest that the branch has an environment on."""
        text = run("git", "show", f"main:{pins.toml_path(environment)}", cwd=self.hub.repository)
        return next(
            line.split('"')[1] for line in text.splitlines() if line.startswith("worker =")
        ).partition("@")[2]

    def a_day_passes(self) -> None:
        """What runs has proven itself."""
        for world in self.worlds.values():
            world.fleet.sleep(DAY)


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def machine(folder: Path, synthesised: Path) -> None:
    """Write the programs that stand in for what a hosted runner has."""
    cdktf = folder / "cdktf.py"
    folder.mkdir()
    cdktf.write_text(CDKTF)
    program(folder, "npx", f'#!/bin/sh\nexec {sys.executable} {cdktf} "$@"\n')
    program(
        folder,
        "make",
        f'#!/bin/sh\ncase "$*" in *synth*) mkdir -p infra && cp -R {synthesised} infra/cdktf.out;; esac\n',
    )
    for name in ("node", "terraform"):
        program(folder, name, "#!/bin/sh\n")
    program(folder, "skopeo", "#!/bin/sh\ncat > /dev/null\n")
    program(folder, "aws", "#!/bin/sh\necho password\n")


def restore(workspace: Path) -> None:
    """Put `uv` and the virtual environment where `make setup` leaves them."""
    here = f"{CI[0]} -c '{CI[2]}'"
    # The fleets have no autoscaling groups, and test_copies shows the copy.
    uv = f"""#!/bin/sh
shift 3
case "$1" in
  deploy) exec {here} "$@" --no-aws-pools;;
  copy) echo "copied $2 to $3";;
  *) exec {here} "$@";;
esac
"""
    program(workspace, ".tools/bin/uv", uv)
    program(workspace, ".venv/bin/airbridge-ci", f'#!/bin/sh\nexec {here} "$@"\n')


@pytest.fixture
def pipeline(project: Tree, tmp_path: Path) -> Iterator[Pipeline]:
    """Release 1 everywhere, then release 2; the platform of each environment, for a day on it."""
    for script in ("ci/scripts/registry_logins.sh", "ci/scripts/push_promotion.sh"):
        project.write(script, (ROOT / script).read_text())
    project.write(".gitignore", "dist/\ninfra/cdktf.out/\n.tools/\n.venv/\n")
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", "What the jobs need")
    for name in ENVIRONMENTS:
        project.pin(name, project.release(2))
    git(project, "add", "-A")
    git(project, "commit", "--quiet", "-m", "Release 2 everywhere")
    git(project, "branch", "-M", "main")
    bare = tmp_path / "hub.git"
    run("git", "clone", "--quiet", "--bare", str(project.root), str(bare))
    machine(tmp_path / "programs", tmp_path / "synthesised")
    digest = project.release(2).release.images["edge-worker"].digest
    worlds = {
        name: World(Fleet(dict.fromkeys(pins.load(project.checkout, name).regions, digest)))
        for name in ENVIRONMENTS
    }
    urls = {name: world.url for name, world in worlds.items()}

    def assume(role: str, _region: str, seconds: int, _subject: str) -> dict[str, str]:
        name = role.rpartition("-")[2]
        assert seconds == (21600 if role.startswith("deployer") else 3600)
        return {"ENVIRONMENT_OF_ROLE": name, "CLOUD": urls[name]}

    before = {"staging": "dev", "prod": "staging"}
    hub = Hub(
        repository=bare,
        work=tmp_path / "runner",
        variables={
            "": {"AWS_HOME_REGION": "us-east-1"},
            "release": {f"AWS_PUBLISH_ROLE_{name}": f"publisher-{name}" for name in ENVIRONMENTS},
            **{
                name: {
                    "AWS_DEPLOY_ROLE": f"deployer-{name}",
                    "OPERATOR_URL": urls[name],
                    "AIRFLOW_URL": urls[name],
                    "SOURCE_OPERATOR_URL": urls.get(before.get(name, ""), ""),
                    "SOURCE_AIRFLOW_URL": urls.get(before.get(name, ""), ""),
                }
                for name in ENVIRONMENTS
            },
        },
        secrets={
            name: {
                "OPERATOR_TOKEN": OPERATOR_TOKEN,
                "AIRFLOW_TOKEN": "of airflow",
                "SOURCE_OPERATOR_TOKEN": OPERATOR_TOKEN,
                "SOURCE_AIRFLOW_TOKEN": "of airflow",
            }
            for name in ENVIRONMENTS
        },
        path=[tmp_path / "programs"],
        machine={"GIT_AUTHOR_DATE": "", "PYTHONDONTWRITEBYTECODE": "", "GITHUB_RUN_ID": RUN_ID},
        restore=restore,
        assume=assume,
    )
    reviews: list[Review] = [("hubot", "approved", "prod")]
    with ExitStack() as stack:
        for world in worlds.values():
            stack.enter_context(serving(world))
        api = stack.enter_context(serving_reviews(reviews))
        hub.machine = {**hub.machine, "GITHUB_API_URL": api}
        yield Pipeline(project, hub, worlds, reviews)


def results(jobs: Mapping[str, Job]) -> dict[str, str]:
    """Return each job's result, and print the steps that failed."""
    for job in jobs.values():
        for step in job.steps:
            if step.outcome == "failure":
                print(f"{job.name}: {step.name}: {step.output}")
    return {name: job.result for name, job in jobs.items()}


def test_build_reaches_dev(pipeline: Pipeline) -> None:
    """A release of main.yml is promoted by a commit on main and deployed, without a copy; the token is in no output."""
    new = pipeline.release(3)
    jobs = pipeline.promote("build", "dev")
    assert results(jobs) == {"copy": "skipped", "promote": "success"}
    assert pipeline.pinned("dev") == new
    pipeline.worlds["dev"].fleet.sleep(DAY)
    assert pipeline.running("dev") == {new}
    assert not [step for step in jobs["promote"].steps if OPERATOR_TOKEN in step.output]


def test_promotion_of_another_branch_is_left_out(pipeline: Pipeline) -> None:
    """Dispatched from a branch, no job runs."""
    run("git", "branch", "mine", "main", cwd=pipeline.hub.repository)
    pipeline.hub.ref = "refs/heads/mine"
    pipeline.release(3)
    assert results(pipeline.promote("dev", "staging")) == {"copy": "skipped", "promote": "skipped"}


def test_prod_needs_a_second_person(pipeline: Pipeline) -> None:
    """A run that only who started it approved promotes and deploys nothing; a redeployment is held to it, too."""
    old = pipeline.running("prod")
    pipeline.reviews[:] = [("mona", "approved", "prod")]
    for options in ({}, {"redeploy": True}, {"rollback": True}):
        jobs = pipeline.promote("staging", "prod", **options)
        assert results(jobs)["promote"] == "failure"
        step = "Require the persons that the environment needs"
        assert "prod needs 2 persons, and behind this run is mona" in jobs["promote"].output(step)
        assert jobs["promote"].outcomes()["Deploy in waves"] == "skipped"
    assert pipeline.running("prod") == old


def moving_main(pipeline: Pipeline, edit: Callable[[Tree], None]) -> None:
    """Have somebody push to main after each checkout of a job: a run waits for its approval, and main moves."""
    tree, restored = pipeline.project, pipeline.hub.restore

    def restore_and_move(workspace: Path) -> None:
        restored(workspace)
        git(tree, "fetch", "--quiet", str(pipeline.hub.repository), "main")
        git(tree, "reset", "--quiet", "--hard", "FETCH_HEAD")
        edit(tree)
        git(tree, "commit", "--quiet", "--allow-empty", "-a", "-m", "Work that goes on")
        git(tree, "push", "--quiet", str(pipeline.hub.repository), "HEAD:main")

    pipeline.hub.restore = restore_and_move


def subjects(pipeline: Pipeline) -> list[str]:
    """Return the subjects of main's last two commits, the newest first."""
    log = run("git", "log", "--format=%s", "-2", "main", cwd=pipeline.hub.repository)
    return log.splitlines()


def test_promotion_is_pushed_onto_moved_main(pipeline: Pipeline) -> None:
    """A commit that reached main after the run began stays there, below the promotion, which is deployed."""
    new = pipeline.release(3)
    moving_main(pipeline, lambda _: None)
    jobs = pipeline.promote("build", "dev")
    assert results(jobs)["promote"] == "success"
    assert "Work that goes on" == subjects(pipeline)[1]
    assert pipeline.pinned("dev") == new
    pipeline.worlds["dev"].fleet.sleep(DAY)
    assert pipeline.running("dev") == {new}


def test_redeployment_is_of_moved_main(pipeline: Pipeline) -> None:
    """A redeployment that waited behind a promotion deploys the promoted release, and pushes nothing."""
    new = pipeline.digest(3)

    def promoted(tree: Tree) -> None:
        tree.pin("dev", tree.release(3))

    moving_main(pipeline, promoted)
    jobs = pipeline.promote("build", "dev", redeploy=True)
    assert results(jobs)["promote"] == "success"
    assert "Work that goes on" == subjects(pipeline)[0]
    pipeline.worlds["dev"].fleet.sleep(DAY)
    assert pipeline.running("dev") == {new}


def test_promotion_onto_a_faulty_main_is_not_pushed(pipeline: Pipeline) -> None:
    """Parity is checked again on what main has by then: a promotion that disagrees with it is neither pushed nor deployed."""
    old = pipeline.digest(2)
    pipeline.release(3)

    def fault(tree: Tree) -> None:
        tree.edit(pins.toml_path("staging"), "sha256:[0-9a-f]{64}", f"sha256:{64 * 'e'}", count=0)

    moving_main(pipeline, fault)
    jobs = pipeline.promote("build", "dev")
    assert results(jobs)["promote"] == "failure"
    assert "staging" in jobs["promote"].output("Push the promotion")
    assert "skipped" == jobs["promote"].outcomes()["Deploy in waves"]
    assert (pipeline.pinned("dev"), pipeline.running("dev")) == (old, {old})


@pytest.mark.slow("make proof-pipelines")
def test_release_through_all_environments(pipeline: Pipeline) -> None:
    """To prod and back: copied, promoted, deployed; redeployed; rolled back, and once more."""
    new = pipeline.release(3)
    assert results(pipeline.promote("build", "dev"))["promote"] == "success"
    for source, target in (("dev", "staging"), ("staging", "prod")):
        pipeline.a_day_passes()
        jobs = pipeline.promote(source, target)
        assert results(jobs) == {"copy": "success", "promote": "success"}
        assert jobs["copy"].output("Copy") == f"copied {source} to {target}\n"
    pipeline.a_day_passes()
    assert {name: pipeline.running(name) for name in ENVIRONMENTS} == {name: {new} for name in ENVIRONMENTS}

    jobs = pipeline.promote("staging", "prod", redeploy=True)
    outcomes = jobs["promote"].outcomes()
    assert results(jobs) == {"copy": "skipped", "promote": "success"}
    assert (outcomes["Promote"], outcomes["Deploy in waves"]) == ("skipped", "success")

    for number in (2, 1):
        jobs = pipeline.promote("staging", "prod", rollback=True)
        assert results(jobs) == {"copy": "skipped", "promote": "success"}
        pipeline.a_day_passes()
        assert pipeline.pinned("prod") == pipeline.digest(number)
        assert pipeline.running("prod") == {pipeline.digest(number)}
    assert pipeline.running("staging") == {new}


@pytest.mark.slow("make proof-pipelines")
def test_bad_canary_fails_the_job(pipeline: Pipeline) -> None:
    """Workers of staging's canary fail their tasks: the job is red, the canary is back on the release before, and prod gets nothing."""
    old, new = pipeline.digest(2), pipeline.release(3)
    assert results(pipeline.promote("build", "dev"))["promote"] == "success"
    pipeline.a_day_passes()
    fleet = pipeline.worlds["staging"].fleet
    fleet.behaviours = {(region, new): Behaviour(share_failed=0.5) for region in fleet.regions}
    jobs = pipeline.promote("dev", "staging")
    assert results(jobs)["promote"] == "failure"
    assert "tasks failed since the wave began" in jobs["promote"].output("Deploy in waves")
    fleet.sleep(120)
    assert pipeline.running("staging") == {old}
    assert results(pipeline.promote("staging", "prod"))["promote"] == "failure"
    assert pipeline.pinned("prod") == old
