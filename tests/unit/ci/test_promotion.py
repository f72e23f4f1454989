"""Promotion: forward, unchanged, signed, proven, in order; or refused with the rule that stands in the way."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from tests.unit.ci.tree import RELEASES, STACK, Tree, git, stack, start_history

from airbridge.ci.exceptions import CiError, PromotionRefused, ToolError
from airbridge.ci.release import manifest, pins, previous
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.rollout.promotion import Direction, Promotion
from airbridge.ci.rollout.rules import Rules
from airbridge.ci.rollout.testing import Behaviour, Fleet

REGION = "eu-west-1"


@pytest.fixture
def history(tree: Tree) -> Tree:
    """Release 1 everywhere, then release 2 in dev; each a commit."""
    start_history(tree, "Release 1 everywhere")
    tree.pin("dev", tree.release(2))
    (tree.root / "infra/cdktf.out").rename(tree.root.parent / "synthesised")
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "-m", "Release 2 in dev")
    return tree


def worker_digest(loaded: Manifest) -> str:
    """The digest that workers of a release run."""
    return loaded.release.images["edge-worker"].digest


def fleet(tree: Tree, number: int = 2, **behaviour: object) -> Fleet:
    """dev, for a day on a release."""
    digest = worker_digest(tree.release(number))
    return Fleet({REGION: digest}, {(REGION, digest): Behaviour(**behaviour)})  # type: ignore[arg-type]


def promotion(tree: Tree, target: str = "staging", source: str | None = "dev") -> tuple[Rules, Promotion]:
    """The rules, and the release of `source` on its way to `target`."""
    rules = Rules(tree.checkout, Fleet({}).now())
    loaded = rules.of_environment(source) if source else tree.release(3)
    return rules, Promotion(tree.checkout, target, loaded, source)


def test_promotion_is_one_commit(history: Tree) -> None:
    """The manifest's bytes are the same in both environments; one commit, two files."""
    rules, move = promotion(history)
    rules.check(move, fleet(history))
    move.commit(move.write())
    assert history.read(pins.release_path("staging")) == history.read(pins.release_path("dev"))
    assert pins.load(history.checkout, "staging").digest("worker") == worker_digest(history.release(2))
    changed = git(history, "show", "--name-only", "--format=%s", "HEAD").split()
    assert {pins.toml_path("staging"), pins.release_path("staging")} <= set(changed)
    assert git(history, "status", "--porcelain") == ""


def test_previous_release_is_kept(history: Tree) -> None:
    """The release that leaves stays beside the new one, signed, for as long as its worker is admitted; then it goes."""
    _, move = promotion(history)
    leaving = manifest.parse(history.read(pins.release_path("staging")), "")
    move.commit(move.write())
    assert previous.load(history.checkout, "staging") == (leaving,)
    assert not list(
        previous.problems(history.checkout, "staging", {leaving.signatures[0].kid: history.key.public_key()})
    )
    history.edit(previous.path("staging"), r'"schema": 1', '"schema": 1, "schema": 1')
    with pytest.raises(CiError, match="more than once"):
        previous.load(history.checkout, "staging")


def test_promotion_edits_digests_only(history: Tree) -> None:
    """Only the digests of an environment's file change, comments and order stay; the worker that leaves is kept as the previous one."""
    before = history.read(pins.toml_path("staging")).splitlines()
    leaving = pins.load(history.checkout, "staging").images["worker"]
    promotion(history)[1].write()
    after = history.read(pins.toml_path("staging")).splitlines()
    after.remove(f'previous_worker = "{leaving}"')
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 2
    assert all("@sha256:" in a and "@sha256:" in b for a, b in changed)


def test_diff_names_images_and_stacks(history: Tree) -> None:
    """The text for a reviewer: revision, images and stacks that change, and nothing else."""
    shown = {change.what for change in promotion(history)[1].changes()}
    assert {"revision", "control-plane", "edge-worker", "stacks"} <= shown
    assert "airflow" not in shown


def _skip(tree: Tree) -> None:
    rules, move = promotion(tree, target="prod", source="dev")
    rules.check(move, fleet(tree))


def _unsigned(tree: Tree) -> None:
    loaded = tree.release(2)
    tree.write(pins.release_path("dev"), Manifest(release=loaded.release).text())
    rules, move = promotion(tree)
    rules.check(move, fleet(tree))


def _altered(tree: Tree) -> None:
    tree.edit(pins.release_path("dev"), r'"python": "3\.12\.14"', '"python": "3.12.13"')
    rules, move = promotion(tree)
    rules.check(move, fleet(tree))


def _edited_source(tree: Tree) -> None:
    tree.edit(pins.toml_path("dev"), r'^worker = ".*"', 'worker = "edge-worker@sha256:' + "ab" * 32 + '"')
    rules, move = promotion(tree)
    rules.check(move, fleet(tree))


def _back(tree: Tree) -> None:
    tree.pin("dev", tree.release(0))
    rules, move = promotion(tree)
    rules.check(move, fleet(tree, 0))


def _same(tree: Tree) -> None:
    tree.pin("staging", tree.release(2))
    rules, move = promotion(tree)
    rules.check(move, fleet(tree))


def _unknown(tree: Tree) -> None:
    rules, move = promotion(tree, target="local")
    rules.check(move, fleet(tree))


def _parity(tree: Tree) -> None:
    tree.edit("compatibility.toml", r'^airflow = ".*"', 'airflow = ">=3"')
    rules, move = promotion(tree)
    rules.check(move, fleet(tree))


def _of_another_branch(tree: Tree) -> None:
    tree.pin("dev", tree.release(RELEASES))
    rules, move = promotion(tree)
    rules.check(move, fleet(tree, RELEASES))


def _without_fleet(tree: Tree) -> None:
    rules, move = promotion(tree)
    rules.check(move, None)


def _too_early(tree: Tree) -> None:
    rules, move = promotion(tree)
    Rules(rules.checkout, rules.now - timedelta(hours=23, minutes=30)).check(move, fleet(tree))


def _sick(tree: Tree) -> None:
    rules, move = promotion(tree)
    rules.check(move, fleet(tree, beats_for_seconds=60.0))


def _failing(tree: Tree) -> None:
    rules, move = promotion(tree)
    rules.check(move, fleet(tree, share_failed=0.5))


def _not_running_anywhere(tree: Tree) -> None:
    rules, move = promotion(tree)
    rules.check(move, fleet(tree, number=1))


def _build_to_staging(tree: Tree) -> None:
    rules, move = promotion(tree, target="staging", source=None)
    rules.check(move, None)


@pytest.mark.parametrize(
    ("attempt", "says"),
    [
        (_skip, "no environment is skipped"),
        (_build_to_staging, "takes releases from dev, not from a build"),
        (_unsigned, "not signed"),
        (_altered, "altered"),
        (_edited_source, "the digest of its release"),
        (_back, "--rollback"),
        (_same, "already"),
        (_unknown, "is not in ci/rollout.toml"),
        (_parity, "parity finds"),
        (_of_another_branch, "not in this branch"),
        (_without_fleet, "--url"),
        (_too_early, "asks for 1:00:00"),
        (_sick, "not healthy"),
        (_failing, "tasks failed in dev"),
        (_not_running_anywhere, "no worker of dev runs"),
    ],
)
def test_promotion_rules_refuse_release(history: Tree, attempt: Callable[[Tree], None], says: str) -> None:
    """Each rule, and the sentence that names it."""
    with pytest.raises(PromotionRefused) as caught:
        attempt(history)
    assert says in str(caught.value)


def test_build_enters_first_environment(history: Tree) -> None:
    """dev takes builds; it follows no environment, so no control plane is queried."""
    rules, move = promotion(history, target="dev", source=None)
    rules.check(move, None)
    move.write()
    assert pins.load(history.checkout, "dev").digest("worker") == worker_digest(history.release(3))


def test_only_last_worker_is_previous(history: Tree) -> None:
    """After two promotions the file names one previous worker, beside the current one, and none after a placeholder."""
    file = pins.toml_path("dev")
    placeholder = pins.load(history.checkout, "dev").moved(pins.WorkerImages("sha256:" + 64 * "2"))
    history.write(file, placeholder)
    for number in (2, 3, 4):
        history.pin("dev", history.release(number))
        found = pins.load(history.checkout, "dev").images
        names = [line.partition(" ")[0] for line in history.read(file).splitlines()]
        if number == 2:
            assert "previous_worker" not in found
        else:
            assert found["previous_worker"] == f"edge-worker@{worker_digest(history.release(number - 1))}"
            assert names[names.index("worker") + 1] == "previous_worker"


def test_rollback_needs_option(history: Tree) -> None:
    """--rollback takes the release that the environment was on before, from git's history, signature and all."""
    rules = Rules(history.checkout, Fleet({}).now())
    earlier = rules.earlier("dev", None)
    assert earlier.release.digest == history.release(1).release.digest
    move = Promotion(history.checkout, "dev", earlier, None, Direction.BACK)
    rules.check(move, None)
    move.commit(move.write())
    assert history.read(pins.release_path("dev")) == history.read(pins.release_path("staging"))


def test_environments_go_back_last_one_first(history: Tree) -> None:
    """dev cannot go back while staging, which follows it, stays ahead."""
    history.pin("staging", history.release(2))
    earlier = Rules(history.checkout, Fleet({}).now()).earlier("dev", None)
    with pytest.raises(PromotionRefused, match="environment-ahead"):
        Promotion(history.checkout, "dev", earlier, None, Direction.BACK).write()


def test_going_back_is_not_going_forward(history: Tree) -> None:
    """--rollback refuses a newer release."""
    move = Promotion(history.checkout, "staging", history.release(2), None, Direction.BACK)
    with pytest.raises(PromotionRefused, match="going back"):
        Rules(history.checkout, Fleet({}).now()).check(move, None)


def test_what_breaks_parity_leaves_no_trace(history: Tree) -> None:
    """A release that the matrix does not allow is refused after the fact, and both files are as they were."""
    before = [history.read(path) for path in (pins.toml_path("dev"), pins.release_path("dev"))]
    move = Promotion(history.checkout, "dev", history.release(3, airflow="3.0.5"), None)
    with pytest.raises(PromotionRefused, match="breaks parity"):
        move.write()
    assert before == [history.read(path) for path in (pins.toml_path("dev"), pins.release_path("dev"))]


def test_synthesised_stacks_are_no_obstacle(history: Tree) -> None:
    """Stacks that were synthesised before name the images of before; a promotion goes on beside them."""
    history.write(STACK, stack(history, "staging"))
    rules, move = promotion(history)
    rules.check(move, fleet(history))
    move.write()
    assert pins.load(history.checkout, "staging").digest("worker") == worker_digest(history.release(2))


def test_refused_commit_leaves_no_trace(history: Tree) -> None:
    """A hook that refuses the commit leaves nothing staged and both files as they were."""
    hook = history.root / ".git/hooks/pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    before = history.read(pins.toml_path("staging"))
    move = promotion(history)[1]
    with pytest.raises(ToolError):
        move.commit(move.write())
    assert git(history, "status", "--porcelain") == ""
    assert history.read(pins.toml_path("staging")) == before


def test_going_back_twice(history: Tree) -> None:
    """The second way back leads to the release before the first one's, not forward again."""
    history.pin("dev", history.release(3))
    git(history, "commit", "--quiet", "--all", "-m", "Release 3 in dev")
    for number in (2, 1):
        rules = Rules(history.checkout, Fleet({}).now())
        earlier = rules.earlier("dev", None, older=True)
        assert earlier.release.digest == history.release(number).release.digest
        move = Promotion(history.checkout, "dev", earlier, None, Direction.BACK)
        rules.check(move, None)
        move.commit(move.write())
    with pytest.raises(PromotionRefused, match="no older release"):
        Rules(history.checkout, Fleet({}).now()).earlier("dev", None, older=True)


def test_a_missing_release_is_named(history: Tree) -> None:
    """An environment that was never released cannot be the source."""
    (history.root / pins.release_path("dev")).unlink()
    with pytest.raises(CiError, match=r"dev\.release\.json"):
        promotion(history)


def test_environment_reads_its_manifest(history: Tree) -> None:
    """`of_environment` is that file and nothing else."""
    found = Rules(history.checkout, Fleet({}).now()).of_environment("dev")
    assert found == manifest.parse(history.read(pins.release_path("dev")), "")


def _uncommitted(tree: Tree) -> None:
    tree.append("infra/environments/prod.toml", "\n# a change\n")


def _unsigned_control_plane(tree: Tree) -> None:
    tree.edit(
        pins.toml_path("prod"),
        r'^control_plane = ".*"',
        'control_plane = "control-plane@sha256:' + "ab" * 32 + '"',
    )
    git(tree, "commit", "--quiet", "--all", "-m", "Another control plane")


def _unreleased_previous(tree: Tree) -> None:
    line = f'previous_worker = "edge-worker@sha256:{"cd" * 32}"'
    tree.edit(pins.toml_path("prod"), r'^(worker = ".*")', rf"\1\n{line}")
    git(tree, "commit", "--quiet", "--all", "-m", "Another worker")


def _forged_previous(tree: Tree) -> None:
    tree.pin("prod", tree.release(2))
    tree.edit(previous.path("prod"), r'"python": "3\.12\.14"', '"python": "3.12.13"')
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "-m", "A previous release, altered")


def _lost_previous(tree: Tree) -> None:
    tree.pin("prod", tree.release(2))
    (tree.root / previous.path("prod")).unlink()
    git(tree, "add", "-A")
    git(tree, "commit", "--quiet", "-m", "A previous release, lost")


def _prod_of_another_branch(tree: Tree) -> None:
    elsewhere = tree.release(RELEASES)
    tree.pin("prod", elsewhere)
    git(tree, "commit", "--quiet", "--all", "-m", "A release of nowhere")


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (_uncommitted, r"not as it was committed: infra/environments/prod\.toml"),
        (
            _unsigned_control_plane,
            r"prod\.toml:\d+: control_plane is not sha256:\w+, the digest of its release",
        ),
        (
            _unreleased_previous,
            r"prod\.toml:\d+: previous_worker is edge-worker@sha256:cdcd\w+, of no release",
        ),
        (_forged_previous, r"prod\.toml:\d+: previous_worker: the signature of \w+ does not match"),
        (_lost_previous, r"previous_worker: no release in infra/environments/prod\.previous\.json names"),
        (_prod_of_another_branch, "which is not in this branch"),
    ],
)
def test_deployment_applies_what_is_signed(history: Tree, plant: Callable[[Tree], None], says: str) -> None:
    """No digest is applied that no signed manifest names, and nothing that was not committed."""
    plant(history)
    with pytest.raises(PromotionRefused, match=says):
        Rules(history.checkout, Fleet({}).now()).check_deployment("prod")


def test_previous_worker_of_a_release_is_deployed(history: Tree) -> None:
    """The worker of the release before is admitted beside the current one."""
    for number in (2, 3):
        history.pin("prod", history.release(number))
        git(history, "add", "-A")
        git(history, "commit", "--quiet", "-m", f"Release {number} in prod")
    assert pins.PREVIOUS in pins.load(history.checkout, "prod").images
    found = Rules(history.checkout, Fleet({}).now()).check_deployment("prod")
    assert found.release.digest == history.release(3).release.digest
