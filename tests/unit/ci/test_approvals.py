"""Persons behind a deployment, counted from the run and its reviews."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.workflows.hub import NAME, TOKEN
from tests.support.workflows.reviews import RUN_ID, Review, serving_reviews
from tests.unit.ci.tree import ROOT
from typer.testing import CliRunner

from airbridge.ci.cli.main import app
from airbridge.ci.exceptions import ControlPlaneError, PromotionRefused
from airbridge.ci.rollout.approvals import Run, require

VARIABLES = {
    "GITHUB_REPOSITORY": NAME,
    "GITHUB_RUN_ID": RUN_ID,
    "GITHUB_ACTOR": "mona",
    "GITHUB_TOKEN": TOKEN,
}


@pytest.fixture
def reviews() -> list[Review]:
    """What the run was reviewed with."""
    return []


@pytest.fixture
def environ(reviews: list[Review], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The runner's variables."""
    with serving_reviews(reviews) as url:
        given = {**VARIABLES, "GITHUB_API_URL": url}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("GITHUB_TRIGGERING_ACTOR", raising=False)
        yield given


@pytest.mark.parametrize(
    ("given", "enough"),
    [
        ([], False),
        ([("hubot", "approved", "prod")], True),
        ([("mona", "approved", "prod")], False),
        ([("hubot", "approved", "staging")], False),
        ([("hubot", "rejected", "prod")], False),
        ([("hubot", "rejected", "prod"), ("hubot", "approved", "prod")], False),
        ([("hubot", "approved", "prod"), ("hubot", "rejected", "prod")], True),
    ],
    ids=[
        "no review",
        "another person",
        "who started it",
        "another environment",
        "a rejection",
        "a rejection after an approval",
        "an approval after a rejection",
    ],
)
def test_who_counts(
    given: list[Review], enough: bool, reviews: list[Review], environ: dict[str, str]
) -> None:
    """Another person's last word counts, for that environment."""
    reviews += given
    if enough:
        assert require(2, "prod", Run.current(environ)) == {"mona", "hubot"}
    else:
        with pytest.raises(PromotionRefused, match="prod needs 2 persons, and behind this run is mona: let"):
            require(2, "prod", Run.current(environ))


def test_who_repeats_a_run_is_no_approver(reviews: list[Review], environ: dict[str, str]) -> None:
    """Who starts a run again stands behind it as one who started it."""
    reviews.append(("hubot", "approved", "prod"))
    again = Run.current({**environ, "GITHUB_TRIGGERING_ACTOR": "hubot"})
    assert again.approvers("prod") == frozenset()
    assert require(2, "prod", again) == {"mona", "hubot"}


def test_refusal_of_the_api_is_no_approval(environ: dict[str, str]) -> None:
    """A token without the right is an error that names the permission, whoever approved."""
    with pytest.raises(ControlPlaneError, match=r"(?s)403 .*actions: read"):
        require(2, "prod", Run.current({**environ, "GITHUB_TOKEN": "another"}))
    assert "another" not in repr(Run.current({**environ, "GITHUB_TOKEN": "another"}))


def test_outside_of_a_run_is_refused() -> None:
    """Nothing is assumed of who starts it by hand."""
    with pytest.raises(PromotionRefused, match="GITHUB_RUN_ID, GITHUB_TOKEN are not set"):
        Run.current(
            {
                name: value
                for name, value in VARIABLES.items()
                if name not in {"GITHUB_RUN_ID", "GITHUB_TOKEN"}
            }
            | {"GITHUB_API_URL": "http://127.0.0.1:9"}
        )


def test_command_reads_how_many(
    reviews: list[Review], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """dev needs one person and asks nothing; prod needs two; an unknown environment is named."""
    runner = CliRunner()
    assert 0 == runner.invoke(app, ["approved", "dev", "--root", str(ROOT)]).exit_code
    refused = runner.invoke(app, ["approved", "prod", "--root", str(ROOT)])
    assert isinstance(refused.exception, PromotionRefused)
    reviews.append(("hubot", "approved", "prod"))
    assert 0 == runner.invoke(app, ["approved", "prod", "--root", str(ROOT)]).exit_code
    unknown = runner.invoke(app, ["approved", "lab", "--root", str(ROOT)])
    assert "no environment lab: it has dev, staging, prod" in str(unknown.exception)
