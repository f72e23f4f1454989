"""Parity finds every planted disagreement, names its file and line, and is silent on the clean tree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tests.unit.ci.tree import ROOT, STACK, Tree, digest, stack

from airbridge.ci.checkout import Checkout, Source
from airbridge.ci.parity import checks
from airbridge.ci.parity.facts import Distribution
from airbridge.ci.parity.finding import Finding, as_annotations, as_json, as_text
from airbridge.ci.release import keys, manifest, pins

WORKER = "edge_worker/pyproject.toml"
STAGING = pins.toml_path("staging")
PROD = pins.toml_path("prod")
PROD_RELEASE = pins.release_path("prod")
WORKER_IMAGE = "images/edge-worker.Dockerfile"
PLANE_IMAGE = "images/control-plane.Dockerfile"
BASE = "images/base.Dockerfile"
DEBS = "images/debs.toml"
ROLLOUT = "ci/rollout.toml"
PROTOCOL = "core/src/airbridge/core/protocol.py"
WORKFLOW = ".github/workflows/planted.yml"


@dataclass(frozen=True)
class Planted:
    """A planted disagreement, and the expected finding. `line` is a pattern for the reported line."""

    name: str
    plant: Callable[[Tree], None]
    check: str
    path: str
    line: str


def edit(path: str, pattern: str, replacement: str) -> Callable[[Tree], None]:
    """Change one place of one file."""
    return lambda tree: tree.edit(path, pattern, replacement)


def workflow(line: str) -> Callable[[Tree], None]:
    """A pipeline that is in order but for one line."""
    text = f"on: push\npermissions: {{}}\njobs:\n  a:\n    runs-on: ubuntu-24.04\n    steps:\n      {line}\n"
    return lambda tree: tree.write(WORKFLOW, text)


def _release(environment: str, number: int, **versions: object) -> Callable[[Tree], None]:
    return lambda tree: tree.pin(environment, tree.release(number, **versions))


def _alter_release(pattern: str, replacement: str) -> Callable[[Tree], None]:
    return edit(PROD_RELEASE, pattern, replacement)


def _unsign(tree: Tree) -> None:
    loaded = manifest.parse(tree.read(PROD_RELEASE), PROD_RELEASE)
    tree.write(PROD_RELEASE, manifest.Manifest(release=loaded.release).text())


def _stack(**changes: str) -> Callable[[Tree], None]:
    return lambda tree: tree.write(STACK, stack(tree, "staging", **changes))


def _unlist_release(tree: Tree) -> None:
    (tree.root / pins.release_path("staging")).unlink()


def _new_version_without_matrix(tree: Tree) -> None:
    """All distributions, the lock and the changelog move on; the matrix is forgotten."""
    for path in tree.root.glob("**/pyproject.toml"):
        tree.edit(str(path.relative_to(tree.root)), r'^version = "0\.1\.0"', 'version = "0.2.0"')
    tree.edit("uv.lock", r'(name = "airbridge-[a-z-]+"\nversion = )"0\.1\.0"', r'\1"0.2.0"', count=0)
    tree.edit("CHANGELOG.md", r"^## \[0\.1\.0\]", "## [0.2.0]")


ECR = "222222222222.dkr.ecr.eu-west-1.amazonaws.com/airbridge-staging"

TABLE = (
    # Versions
    Planted("a distribution's version is bumped alone", edit(WORKER, r'^version = ".*"', 'version = "0.1.1"'), "package-version", WORKER, "^version"),
    Planted("a distribution allows another Python", edit(WORKER, r"^requires-python = .*", 'requires-python = ">=3.10,<3.13"'), "requires-python", WORKER, "^requires-python"),
    Planted("ruff checks another Python", edit("pyproject.toml", r'^target-version = ".*"', 'target-version = "py312"'), "tool-python", "pyproject.toml", "^target-version"),
    Planted("mypy checks another Python", edit("pyproject.toml", r'^python_version = ".*"', 'python_version = "3.12"'), "tool-python", "pyproject.toml", "^python_version"),
    Planted("Airflow is pinned otherwise in one distribution", edit("control_plane/pyproject.toml", r"apache-airflow==[\d.]+", "apache-airflow==3.0.5"), "airflow-pin", "control_plane/pyproject.toml", "apache-airflow=="),
    Planted("Airflow is a range in one distribution", edit("executor/pyproject.toml", r"apache-airflow-core==", "apache-airflow-core>="), "airflow-pin", "executor/pyproject.toml", "apache-airflow-core"),
    Planted("the Task SDK is pinned otherwise", edit(WORKER, r"apache-airflow-task-sdk==[\d.]+", "apache-airflow-task-sdk==1.0.3"), "airflow-pin", WORKER, "task-sdk"),
    Planted("uv is older than required", edit("Makefile", r"^UV_VERSION := .*", "UV_VERSION := 0.8.1"), "uv-version", "Makefile", "^UV_VERSION"),
    Planted("the changelog is behind", edit("CHANGELOG.md", r"^## \[0\.1\.0\]", "## [0.0.9]"), "changelog", "CHANGELOG.md", r"^## \[0.0.9\]"),
    Planted("the changelog names another protocol", edit("CHANGELOG.md", r"Protocol 1", "Protocol 2"), "changelog", "CHANGELOG.md", "Protocol 2"),
    Planted("the synthesiser is of another release", edit("infra/package.json", r'"cdktf-cli": "[^"]+"', '"cdktf-cli": "0.20.0"'), "cdktf-version", "infra/package.json", "cdktf-cli"),
    # The lock
    Planted("a requirement is new since the lock", edit(WORKER, r'^dependencies = \[', 'dependencies = [\n    "orjson>=3",'), "lock-outdated", "uv.lock", "requires-dist|airbridge-edge-worker|version"),
    Planted("a requirement is gone since the lock", edit(WORKER, r'^    "psutil>=7",\n', ""), "lock-outdated", "uv.lock", "psutil"),
    Planted("a locked version is below what is asked for", edit("uv.lock", r'(name = "structlog"\nversion = )"[^"]+"', r'\1"20.1.0"'), "lock-unsatisfied", "uv.lock", "20.1.0"),
    Planted("the lock has another version of Airflow", edit("uv.lock", r'(name = "apache-airflow-core"\nversion = )"[^"]+"', r'\1"3.0.6"'), "lock-unsatisfied", "uv.lock", "3.0.6"),
    Planted("the lock has a distribution's old version", edit("uv.lock", r'(name = "airbridge-edge-worker"\nversion = )"[^"]+"', r'\1"0.0.9"'), "lock-version", "uv.lock", "0.0.9"),
    Planted("the lock is for another Python", edit("uv.lock", r"^requires-python = .*", 'requires-python = ">=3.12, <3.13"'), "lock-python", "uv.lock", "^requires-python"),
    Planted("the lock is of another era", edit("uv.lock", r'^exclude-newer = ".*"', 'exclude-newer = "2025-09-01T00:00:00Z"'), "lock-era", "uv.lock", "^exclude-newer"),
    Planted("a locked file has no hash", edit("uv.lock", r', hash = "sha256:[0-9a-f]{64}"', ""), "lock-hash", "uv.lock", "url = "),
    Planted("a member is missing from the lock", edit("uv.lock", r'^    "airbridge-infra",\n', ""), "lock-members", "uv.lock", "^members"),
    # The matrix and the protocol
    Planted("a matrix without the new version", _new_version_without_matrix, "matrix-current", "compatibility.toml", "."),
    Planted("the matrix allows another Airflow", edit("compatibility.toml", r'^airflow = ".*"', 'airflow = ">=3.0.4"'), "matrix-airflow", "compatibility.toml", "^airflow"),
    Planted("the matrix allows another Task SDK", edit("compatibility.toml", r'^task_sdk = ".*"', 'task_sdk = "==1.0.4,<2"'), "matrix-airflow", "compatibility.toml", "^task_sdk"),
    Planted("the matrix allows a protocol nobody speaks", edit("compatibility.toml", r"^protocol = .*", "protocol = [1, 7]"), "matrix-protocol", "compatibility.toml", "^protocol"),
    Planted("the protocol moves on without the supported ones", edit(PROTOCOL, r"^PROTOCOL_VERSION = 1", "PROTOCOL_VERSION = 2"), "protocol", PROTOCOL, "^SUPPORTED_VERSIONS"),
    Planted("the matrix has a misspelt key", edit("compatibility.toml", r"^worker = ", "workers = "), "matrix-file", "compatibility.toml", "."),
    Planted("the matrix says one thing twice", lambda tree: tree.append("compatibility.toml", "\n" + tree.read("compatibility.toml").partition("[[compatible]]")[1] + tree.read("compatibility.toml").partition("[[compatible]]")[2]), "matrix-unreachable", "compatibility.toml", r"^\[\[compatible"),
    # Images
    Planted("the base is a tag", edit(BASE, r"@sha256:[0-9a-f]{64}", ""), "base-digest", BASE, "^FROM"),
    Planted("the base has a Python outside the range", edit(BASE, r"python:3\.12-slim", "python:3.13-slim"), "base-python", BASE, "^FROM"),
    Planted("the base is of another Debian", edit(BASE, r"slim-bookworm", "slim-trixie"), "base-suite", BASE, "^FROM"),
    Planted("one image has a base of its own", edit(WORKER_IMAGE, r"^FROM \$\{BASE_IMAGE\}", f"FROM python:3.12-slim@{digest(5)}"), "base-pin", WORKER_IMAGE, "^FROM python"),
    Planted("the base has a default", edit(PLANE_IMAGE, r"^ARG BASE_IMAGE$", "ARG BASE_IMAGE=python:3.12"), "base-pin", PLANE_IMAGE, "^ARG BASE_IMAGE="),
    Planted("an image copies from a stranger's", edit(WORKER_IMAGE, r"^USER ", "COPY --from=ghcr.io/astral-sh/uv:latest /uv /uv\nUSER "), "copy-origin", WORKER_IMAGE, "^COPY"),
    Planted("an image installs without hashes", edit(WORKER_IMAGE, r"--require-hashes ", ""), "unhashed-install", WORKER_IMAGE, "^RUN"),
    Planted("an image fetches at build time", edit(PLANE_IMAGE, r"^USER ", "RUN apt-get install -y postgresql-client\nUSER "), "unhashed-install", PLANE_IMAGE, "apt-get"),
    Planted("an image runs as root", edit(WORKER_IMAGE, r"^USER .*", "USER 0:0"), "image-user", WORKER_IMAGE, "^USER"),
    Planted("an image has no init", edit(WORKER_IMAGE, r"^ENTRYPOINT .*", 'ENTRYPOINT ["airbridge-worker"]'), "image-entrypoint", WORKER_IMAGE, "^ENTRYPOINT"),
    Planted("an image does not say its revision", edit(PLANE_IMAGE, r"^ +org\.opencontainers\.image\.revision=.*\n", ""), "image-label", PLANE_IMAGE, "^LABEL"),
    Planted("a package is newer for one machine", edit(DEBS, r'^version = ".*"', 'version = "0.19.1-1"'), "deb-architectures", DEBS, "^version"),
    Planted("a package's path is another version's", edit(DEBS, r"tini_0\.19\.0-1\+b3_amd64", "tini_0.19.0-1_amd64"), "deb-path", DEBS, "^path"),
    # Environments and releases
    Planted("a tag in place of a digest", edit(STAGING, r'^worker = ".*"', 'worker = "edge-worker:0.1.0"'), "image-by-digest", STAGING, "^worker"),
    Planted("the images are swapped", edit(STAGING, r'^worker = "edge-worker@', 'worker = "control-plane@'), "image-name", STAGING, "^worker"),
    Planted("a digest of another build", edit(STAGING, r'^worker = ".*"', f'worker = "edge-worker@{digest(77)}"'), "image-of-release", STAGING, "^worker"),
    Planted("the previous worker by a tag", edit(STAGING, r'^(worker = .*)', r'\1\nprevious_worker = "edge-worker:0.0.9"'), "image-by-digest", STAGING, "^previous_worker"),
    Planted("a previous worker of no signed release", edit(STAGING, r'^(worker = .*)', rf'\1\nprevious_worker = "edge-worker@{digest(77)}"'), "previous-release", STAGING, "^previous_worker"),
    Planted("a digest of no release at all", _unlist_release, "image-of-release", STAGING, "^control_plane|^worker"),
    Planted("an environment ahead of its predecessor", _release("prod", 2), "environment-ahead", PROD_RELEASE, "committed_at"),
    Planted("a release that was altered", _alter_release(r'"airflow": "3\.0\.4"', '"airflow": "3.0.5"'), "release-signature", PROD_RELEASE, "signatures"),
    Planted("a release that nobody signed", _unsign, "release-signature", PROD_RELEASE, "signatures"),
    Planted("a release signed by a stranger", lambda tree: tree.write(keys.FILE, "# nobody\n"), "release-signature", PROD_RELEASE, "signatures"),
    Planted("a release that is no release", _alter_release(r'"revision": "[0-9a-f]+"', '"revision": "main"'), "release-file", PROD_RELEASE, "."),
    Planted("a release that the matrix does not allow", _release("prod", 1, airflow="3.0.5"), "release-matrix", PROD_RELEASE, "versions"),
    Planted("a trusted key under another's name", edit(keys.FILE, r'^kid = ".*"', 'kid = "0123456789abcdef"'), "release-keys", keys.FILE, r"^\[\[key"),
    Planted("an environment in no order", edit(ROLLOUT, r'^\[environment\.prod\]\nfollows = "staging"\n(?:[a-z_]+ = .*\n)+', ""), "rollout", PROD, "^name"),
    Planted("a wave of a region that is not there", edit(ROLLOUT, r'^waves = \[\["ap-southeast-2"\]', 'waves = [["mars-north-1"]'), "rollout-wave", ROLLOUT, "mars-north-1"),
    Planted("two environments that follow none", edit(ROLLOUT, r'^follows = "dev"\n', ""), "rollout", ROLLOUT, "."),
    # Stacks
    Planted("a stack with a hand-typed tag", _stack(control_plane=f"{ECR}/control-plane:0.1.0"), "stack-image", STACK, "container_definitions"),
    Planted("a stack with another digest in its boot script", _stack(worker=f"{ECR}/edge-worker@{digest(9)}"), "stack-image", STACK, "user_data"),
    Planted("a stack with a stranger's image", _stack(control_plane=f"docker.io/library/nginx@{digest(3)}"), "stack-image", STACK, "container_definitions"),
    Planted("a stack of an environment that is not there", _stack(worker=f"{ECR.replace('staging', 'qa')}/edge-worker@{digest(9)}"), "stack-environment", STACK, "user_data"),
    Planted("an image typed into a construct", lambda tree: tree.append("infra/src/airbridge/infra/names.py", f'\nWORKER = "edge-worker@{digest(4)}"\n'), "hand-typed-image", "infra/src/airbridge/infra/names.py", "^WORKER"),
    Planted("a boot script for another user", edit("infra/src/airbridge/infra/constructs/compute/worker_image.py", r"^chown -R 10001:10001", "chown -R 1000:1000"), "state-owner", "infra/src/airbridge/infra/constructs/compute/worker_image.py", "^chown"),
    # Pipelines
    Planted("an action by its tag", workflow("- uses: actions/checkout@v5"), "action-pin", WORKFLOW, "checkout"),
    Planted("an action without its version", workflow(f"- uses: actions/checkout@{'a' * 40}"), "action-pin", WORKFLOW, "checkout"),
    Planted("a pipeline on another Python", workflow('- with: {}\n        python-version: "3.13"'), "workflow-python", WORKFLOW, "3.13"),
    Planted("a pipeline with a uv of its own", workflow("- run: pip install uv==0.9.0"), "workflow-uv", WORKFLOW, "pip install"),
    Planted("a pipeline with whatever permissions", lambda tree: tree.write(WORKFLOW, "on: push\njobs: {}\n"), "workflow-permissions", WORKFLOW, "on: push"),
)  # fmt: skip


def test_the_projects_own_tree_is_clean() -> None:
    """Parity is silent on what is committed here."""
    assert checks.check(Checkout(ROOT)) == []


def test_a_released_tree_is_clean(tree: Tree) -> None:
    """Parity is silent on the tree that the disagreements are planted in."""
    assert checks.check(tree.checkout) == []


@pytest.mark.parametrize("planted", TABLE, ids=lambda planted: planted.name.replace(" ", "-"))
def test_a_planted_disagreement_is_found(tree: Tree, planted: Planted) -> None:
    """It is found by its check, in its file, on its line."""
    planted.plant(tree)
    findings = [f for f in checks.check(tree.checkout) if (f.check, f.path) == (planted.check, planted.path)]
    assert findings, as_text(checks.check(tree.checkout)) or "parity found nothing"
    lines = tree.read(planted.path).splitlines()
    assert any(re.search(planted.line, lines[finding.line - 1]) for finding in findings), as_text(findings)
    assert all(finding.actual and finding.expected for finding in findings)


def test_the_table_is_long_enough() -> None:
    """Thirty kinds at the least, each with a name of its own."""
    assert len({planted.name for planted in TABLE}) == len(TABLE) >= 30


FINDING = Finding("a/b.toml", 3, "image-by-digest", "worker is x:1", "must be 100% by digest")


def test_findings_as_text_json_and_annotations() -> None:
    """Each format has file, line, found and expected value; GitHub's is escaped."""
    assert as_text([FINDING]) == "a/b.toml:3: image-by-digest: worker is x:1; must be 100% by digest\n"
    assert json.loads(as_json([FINDING]))["findings"][0]["line"] == 3
    assert json.loads(as_json([]))["count"] == 0
    expected = "::error file=a/b.toml,line=3,title=image-by-digest::worker is x:1; must be 100%25 by digest\n"
    assert as_annotations([FINDING]) == expected


def test_marker_in_an_extra() -> None:
    """A requirement of an extra keeps its own marker beside the extra's."""
    text = "[project.optional-dependencies]\nfast = [\"orjson; python_version > '3'\"]\n"
    [requirement] = Distribution(Source("pyproject.toml", f"[project]\n{text}")).requirements
    assert str(requirement.marker) == 'python_version > "3" and extra == "fast"'
