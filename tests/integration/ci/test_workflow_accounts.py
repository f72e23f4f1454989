"""main.yml and pull-request.yml job by job, and promotion over three accounts, as the environment files name them.

Real are the YAML, git, every `airbridge-ci` command but the build, skopeo, cosign, STS, and a registry with sign-in for each account and
region. The roles and whom they trust are those of the synthesised bootstrap stacks. Stand-ins: the build of images (of a few kilobytes
here; `make images-verify` builds the real ones), Sigstore (an authority of ours certifies the workflow's identity), `make` (its targets
run in `.ci/run`), and cdktf as in `test_workflow_jobs`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.integration.ci.test_deploy import project
from tests.integration.ci.test_tampering import ISSUER, Authority
from tests.integration.ci.test_workflow_jobs import (
    CI,
    ENVIRONMENTS,
    Pipeline,
    pipeline,
    program,
    results,
)
from tests.support.workflows.accounts import Accounts, accounts, stacks
from tests.support.workflows.hub import NAME
from tests.support.workflows.runner import Job, WorkflowRunner
from tests.unit.ci.tree import ROOT, git

from airbridge.ci import ecr
from airbridge.ci.release import keys, manifest
from airbridge.ci.tools import run

__all__ = ["pipeline", "project"]  # fixtures

NEEDED = ("cosign", "docker-registry", "skopeo")
pytestmark = [
    pytest.mark.slow("make proof-pipelines"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        any(shutil.which(each) is None for each in NEEDED), reason="make images-tools installs what is needed"
    ),
    pytest.mark.skipif(not (ROOT / "infra/.venv/bin/python").exists(), reason="make infra-install"),
]

WORKFLOW = f"https://github.com/{NAME}/.github/workflows/main.yml@refs/heads/main"
AWS = """
import base64, sys, boto3
region = sys.argv[sys.argv.index("--region") + 1] if "--region" in sys.argv else None
[data] = boto3.client("ecr", region_name=region).get_authorization_token()["authorizationData"]
print(base64.b64decode(data["authorizationToken"]).decode().partition(":")[2])
"""
# The part of one architecture, as `build --part-only` leaves it.
BUILD = """
import os
from pathlib import Path
from tests.unit.ci.small_build import write_build
from airbridge.ci.checkout import Checkout
from airbridge.ci.images.assemble import Output
from airbridge.ci.images.base import pinned
from airbridge.ci.parity.facts import Facts
checkout = Checkout(Path.cwd())
revision = checkout.run("git", "rev-parse", "HEAD").strip()
write_build(
    Output(Path("dist")), Facts(checkout), base=pinned(checkout).name, revision=revision,
    committed_at=checkout.committed_at(revision), architecture={"X64": "amd64", "ARM64": "arm64"}[os.environ["RUNNER_ARCH"]],
)
"""
COSIGN = """#!/bin/bash
export REGISTRY_AUTH_FILE=$HOME/auth.json COSIGN_PASSWORD=
verb=$1; shift
case $verb in
  sign|attest)
    own={folder}/${{GITHUB_WORKFLOW_REF//\\//_}}
    [ -d "$own" ] || {{ echo "no certificate for $GITHUB_WORKFLOW_REF" >&2; exit 1; }}
    words=(); for word in "$@"; do [ "$word" = --yes ] || words+=("$word"); done
    exec {cosign} "$verb" --key "$own/own.key" --certificate "$own/cert.pem" --certificate-chain {roots} --tlog-upload=false "${{words[@]}}";;
  *) exec {cosign} "$verb" --ca-roots={roots} --insecure-ignore-tlog --insecure-ignore-sct "$@";;
esac
"""


@dataclass
class Cloud:
    """The pipeline, with three accounts below it."""

    pipeline: Pipeline
    accounts: Accounts
    home: Path

    def start(self, workflow: str) -> dict[str, Job]:
        """Run a workflow that an event starts."""
        return WorkflowRunner(self.pipeline.hub, self.pipeline.project.root / ".github/workflows").run(
            workflow, {}
        )

    def images(self, environment: str) -> set[tuple[str, str]]:
        """Registry and digest of every image list that an environment's registries have."""
        found = set()
        for address in ecr.addresses(self.pipeline.project.checkout, environment):
            host, _, prefix = address.partition("/")
            revisions = self.home / "accounts" / host / f"data/docker/registry/v2/repositories/{prefix}"
            for link in revisions.glob("*/_manifests/revisions/sha256/*"):
                found.add((host, f"sha256:{link.name}"))
        return found


def certificates(folder: Path) -> Path:
    """Return the folder of an authority's certificates, of main.yml on main; `roots.pem` is in it."""
    folder.mkdir()
    authority = Authority(folder)
    key, certificate, _ = authority.certify(WORKFLOW, ISSUER)
    own = folder / WORKFLOW.removeprefix("https://github.com/").replace("/", "_")
    own.mkdir()
    shutil.copy(key, own / "own.key")
    shutil.copy(certificate, own / "cert.pem")
    return folder


def install(programs: Path, folder: Path) -> None:
    """Write the programs of a hosted runner that this machine has otherwise."""
    (programs / "aws.py").write_text(AWS)
    (programs / "build.py").write_text(BUILD)
    program(programs, "aws", f'#!/bin/sh\nexec {sys.executable} {programs}/aws.py "$@"\n')
    skopeo = f'#!/bin/sh\nexport REGISTRY_AUTH_FILE="$HOME/auth.json"\nexec {shutil.which("skopeo")} "$@"\n'
    program(programs, "skopeo", skopeo)
    signing = COSIGN.format(folder=folder, roots=folder / "roots.pem", cosign=shutil.which("cosign"))
    program(programs, "cosign", signing)
    program(programs, "sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    program(programs, "gh", '#!/bin/sh\nexec cat "$7"\n')


def restore(programs: Path, workspace: Path) -> None:
    """Put `uv` and the virtual environment where `make setup` leaves them."""
    here = f"{CI[0]} -c '{CI[2]}'"
    uv = f"""#!/bin/sh
shift 3
case "$1" in
  build) PYTHONPATH={ROOT} exec {CI[0]} {programs}/build.py;;
  deploy) exec {here} "$@" --no-aws-pools;;
  *) exec {here} "$@";;
esac
"""
    program(workspace, ".tools/bin/uv", uv)
    program(workspace, ".venv/bin/airbridge-ci", f'#!/bin/sh\nexec {here} "$@"\n')


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the bootstrap stack of each environment of this checkout."""
    folder = tmp_path_factory.mktemp("stacks")
    return {name: stacks(ROOT, folder / name, name) for name in ENVIRONMENTS}


@pytest.fixture
def cloud(pipeline: Pipeline, bootstrap: dict[str, Path], tmp_path: Path) -> Iterator[Cloud]:
    """The pipeline's project in a hub whose jobs reach three accounts."""
    tree, hub = pipeline.project, pipeline.hub
    tree.append(keys.FILE, f'\n[keyless]\nidentity = "{WORKFLOW}"\nissuer = "{ISSUER}"\n')
    for path in ("images/vex/airbridge.openvex.json",):
        tree.write(path, (ROOT / path).read_text())
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "-m", "Who signs without a key")
    git(tree, "push", "--quiet", str(hub.repository), "main")
    addresses = {name: ecr.addresses(tree.checkout, name) for name in ENVIRONMENTS}
    numbers = {name: there[0].partition(".")[0] for name, there in addresses.items()}
    regions = {numbers[name]: [each.split(".")[3] for each in there] for name, there in addresses.items()}
    install(tmp_path / "programs", certificates(tmp_path / "sigstore"))
    with accounts(tmp_path / "accounts", regions) as made:
        for name in ENVIRONMENTS:
            made.bootstrap(numbers[name], bootstrap[name])
        urls = {name: world.url for name, world in pipeline.worlds.items()}
        environment_of = {number: name for name, number in numbers.items()}

        def assume(role: str, region: str, seconds: int, subject: str) -> dict[str, str]:
            name = environment_of.get(role.split(":")[4], "")
            where = {"ENVIRONMENT_OF_ROLE": name, "CLOUD": urls.get(name, "")}
            return {**made.assume(role, region, seconds, subject), **where}

        def arn(name: str, purpose: str) -> str:
            return f"arn:aws:iam::{numbers[name]}:role/airbridge-{name}-pipeline-{purpose}"

        release = {f"AWS_PUBLISH_ROLE_{name}": arn(name, "publish") for name in ENVIRONMENTS}
        hub.variables = {
            **{
                name: {**hub.variables[name], "AWS_DEPLOY_ROLE": arn(name, "deploy")} for name in ENVIRONMENTS
            },
            "": hub.variables[""],
            "release": {
                **release,
                "AWS_PUBLISH_ROLE": arn("dev", "publish"),
                "REGISTRY": addresses["dev"][0],
            },
            "dev-plan": {"AWS_PLAN_ROLE": arn("dev", "plan")},
        }
        pem = tree.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        hub.secrets = {**hub.secrets, "release": {"RELEASE_SIGNING_KEY": pem}}
        hub.machine = {**hub.machine, **made.environment}
        hub.restore = lambda workspace: restore(tmp_path / "programs", workspace)
        hub.assume = assume
        yield Cloud(pipeline, made, tmp_path)


def test_release_reaches_three_accounts(cloud: Cloud) -> None:
    """A push to main is assembled, signed, published and deployed in dev; promotions copy its digests from account to account."""
    jobs = cloud.start("main.yml")
    assert results(jobs) == {"verify": "success", "release": "success", "dev": "success"}
    pipeline = cloud.pipeline
    released = manifest.load(pipeline.hub.artifacts / "release/release.json").release
    digests = {image.digest for image in released.images.values()}
    assert all(set(image.parts) == {"amd64", "arm64"} for image in released.images.values())
    assert pipeline.pinned("dev") == released.images["edge-worker"].digest
    for source, target in (("dev", "staging"), ("staging", "prod")):
        assert not cloud.images(target)
        pipeline.a_day_passes()
        assert results(pipeline.promote(source, target)) == {"copy": "success", "promote": "success"}
        hosts = {address.partition("/")[0] for address in ecr.addresses(pipeline.project.checkout, target)}
        assert {(host, digest) for host in hosts for digest in digests} <= cloud.images(target)
    pipeline.a_day_passes()
    worker = released.images["edge-worker"].digest
    assert {name: pipeline.running(name) for name in ENVIRONMENTS} == {
        name: {worker} for name in ENVIRONMENTS
    }
    subjects = {
        role.rpartition("/")[2]: subject.rpartition(":")[2] for role, subject in cloud.accounts.sessions
    }
    assert subjects == {
        **{f"airbridge-{name}-pipeline-publish": "release" for name in ENVIRONMENTS},
        **{f"airbridge-{name}-pipeline-deploy": name for name in ENVIRONMENTS},
    }


def test_other_branch_is_not_published(cloud: Cloud) -> None:
    """On another branch the same workflow is somebody else: it gets no certificate of main's identity, and nothing is announced."""
    run("git", "branch", "other", "main", cwd=cloud.pipeline.hub.repository)
    cloud.pipeline.hub.ref = "refs/heads/other"
    jobs = cloud.start("main.yml")
    assert results(jobs) == {"verify": "success", "release": "failure", "dev": "skipped"}
    assert "no certificate for" in jobs["release"].output("Publish")


def test_role_of_another_account_or_job(cloud: Cloud) -> None:
    """The registry of dev does not let prod's role in, and a role does not trust the jobs of another environment."""
    variables = cloud.pipeline.hub.variables
    release = variables["release"]
    wrong = {**release, "AWS_PUBLISH_ROLE": release["AWS_PUBLISH_ROLE_prod"]}
    staging = {**variables["staging"], "AWS_DEPLOY_ROLE": release["AWS_PUBLISH_ROLE_staging"]}
    cloud.pipeline.hub.variables = {**variables, "release": wrong, "staging": staging}
    jobs = cloud.start("main.yml")
    assert jobs["release"].result == "failure"
    assert "invalid username/password" in jobs["release"].output("Publish")
    jobs = cloud.pipeline.promote("dev", "staging", redeploy=True)
    assert jobs["promote"].result == "failure"
    assert f"does not trust repo:{NAME}:environment:staging" in jobs["promote"].output(
        "aws-actions/configure-aws-credentials"
    )


def test_pull_request_jobs(cloud: Cloud) -> None:
    """A pull request is assembled and held to its sources without any identity; one of a fork gets no plan."""
    hub = cloud.pipeline.hub
    hub.event = {"number": 7, "pull_request": {"number": 7, "head": {"repo": {"fork": False}}}}
    jobs = cloud.start("pull-request.yml")
    assert results(jobs) == {"verify": "success", "release": "success", "diff": "success"}
    assert "What this changes in dev" in jobs["diff"].output("Comment")
    assert [role.rpartition("/")[2] for role, _ in cloud.accounts.sessions] == ["airbridge-dev-pipeline-plan"]
    hub.event = {"number": 8, "pull_request": {"number": 8, "head": {"repo": {"fork": True}}}}
    jobs = cloud.start("pull-request.yml")
    assert results(jobs) == {"verify": "success", "release": "success", "diff": "skipped"}
    assert json.dumps(cloud.accounts.sessions).count("pipeline") == 1
