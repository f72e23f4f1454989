"""`airbridge-ci release status`: what is written, and what workers run."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.ci.tree import Tree, git, start_history
from typer.testing import CliRunner

from airbridge.ci.cli.main import app
from airbridge.ci.release import pins
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.rollout.control_plane import RunningVersions, Worker
from airbridge.ci.rollout.rules import Rules
from airbridge.ci.rollout.status import CONTROL_PLANE, Row, Status

NOW = datetime(2026, 1, 20, tzinfo=UTC)


@pytest.fixture
def history(tree: Tree) -> Tree:
    """Release 1 everywhere, then release 2 in prod."""
    start_history(tree, "Release 1 everywhere")
    tree.pin("prod", tree.release(2))
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "-m", "Release 2 in prod")
    return tree


def worker(region: str, image: str | None, hours: float, silent: float = 0.0) -> Worker:
    """A worker that enrolled hours ago, and sent its last heartbeat `silent` seconds ago."""
    return Worker(
        id=f"{region}-{hours}", region=region, pool="default", state="active", versions=RunningVersions(image=image),
        enrolled_at=NOW - timedelta(hours=hours), last_heartbeat_at=NOW - timedelta(seconds=silent),
    )  # fmt: skip


def images_of(tree: Tree, number: int) -> dict[str, str]:
    return {name: image.digest for name, image in tree.release(number).release.images.items()}


def of_pool(rows: list[Row], region: str, pool: str = "default") -> list[Row]:
    return [row for row in rows if (row.region, row.pool) == (region, pool)]


def test_written_release_of_each_pool(history: Tree) -> None:
    """Every pool of every region, and the control plane: digest, commit, the key's owner, and when it was promoted."""
    rows = list(Status(Rules(history.checkout, NOW)).written("prod"))
    regions = pins.load(history.checkout, "prod").regions
    assert {row.region for row in rows} >= set(regions)
    new = history.release(2)
    wanted = images_of(history, 2)
    assert {row.digest for row in rows if row.pool != CONTROL_PLANE} == {wanted["edge-worker"]}
    [control_plane] = [row for row in rows if row.pool == CONTROL_PLANE]
    assert (control_plane.region, control_plane.digest) == ("us-east-1", wanted["control-plane"])
    assert {(row.revision, row.signed_by) for row in rows} == {(new.release.revision, "tests")}
    committed = git(history, "show", "--no-patch", "--format=%cI", "HEAD").strip()
    assert {row.since for row in rows} == {datetime.fromisoformat(committed)}


def test_running_images_by_pool(history: Tree) -> None:
    """Live workers are counted by the digest that they report; one of an earlier release is named, and a stranger's is nobody's."""
    old, new = images_of(history, 1)["edge-worker"], images_of(history, 2)["edge-worker"]
    workers = [
        worker("eu-west-1", new, 1),
        worker("eu-west-1", new, 2),
        worker("eu-west-1", old, 48),
        worker("eu-west-1", f"sha256:{'ab' * 32}", 3),
        worker("us-east-1", new, 9, silent=3600),
        worker("mars-1", None, 4),
    ]
    rows = list(Status(Rules(history.checkout, NOW)).running("prod", workers))
    found = {row.digest: row for row in of_pool(rows, "eu-west-1")}
    assert (found[new].workers, found[new].state, found[new].since) == (
        2,
        "released",
        NOW - timedelta(hours=2),
    )
    assert (found[old].workers, found[old].state) == (1, "replaced")
    assert found[old].revision == history.release(1).release.revision
    stranger = found[f"sha256:{'ab' * 32}"]
    assert (stranger.state, stranger.signed_by, stranger.revision) == ("unknown", "nobody", "")
    assert [(row.workers, row.state) for row in of_pool(rows, "us-east-1")] == [(0, "released")]
    assert [row.state for row in of_pool(rows, "mars-1")] == ["unknown"]


def test_status_of_all_environments(history: Tree) -> None:
    """Without an environment: all that are on a release. An altered release is signed by nobody, and the command exits with 3."""
    words = ["release", "status", "--json", "--root", str(history.root)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert {row["environment"] for row in rows} == {"dev", "staging", "prod"}
    assert {row["digest"] for row in rows if row["environment"] == "dev"} == set(
        images_of(history, 1).values()
    )
    path = pins.release_path("prod")
    history.write(path, Manifest(release=history.release(2).release).text())
    done = CliRunner().invoke(app, [*words[:2], "prod", *words[2:]])
    assert done.exit_code == 3
    [row, *_] = json.loads(done.stdout)
    assert row["signed_by"].startswith("nobody: ")
    assert row["since"] is None
