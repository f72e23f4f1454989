"""Teams of a local platform, from a file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tests.unit.executor.catalogues import TOML

from airbridge.control_plane.local.services.teams import with_teams
from airbridge.core.exceptions import ConfigurationError

LIMIT = '[[limit]]\nname = "erp"\nmax_running = 2\n'
TEAM = '[[team]]\nname = "finance"\nbundles = ["dags"]\n'


def test_teams_are_added(tmp_path: Path) -> None:
    """The catalogue gets the file's teams and keeps its regions; without a file it stays as it is."""
    file = tmp_path / "teams.toml"
    file.write_text(TEAM)
    joined = tomllib.loads(with_teams(TOML, file))
    assert joined == {**tomllib.loads(TOML), "team": [{"name": "finance", "bundles": ["dags"]}]}
    assert with_teams(TOML, None) == TOML
    file.write_text(LIMIT)
    assert tomllib.loads(with_teams(TOML, file))["limit"] == [{"name": "erp", "max_running": 2}]


@pytest.mark.parametrize(
    ("catalogue", "text", "message"),
    [
        (TOML, None, "No such file"),
        (TOML, "team", "Expected"),
        (TOML, "", "must have [[team]] and [[limit]] entries alone; it has nothing"),
        (
            TOML,
            f'home_region = "mars-1"\n{TEAM}',
            "must have [[team]] and [[limit]] entries alone; it has home_region",
        ),
        (TOML, TEAM.replace('["dags"]', "[]"), "team 'finance' has no bundles"),
        (f"{TOML}\n{LIMIT}", LIMIT + TEAM, "the deployment's catalogue has limits of its own"),
        (f"{TOML}\n{TEAM}", TEAM, "the deployment's catalogue has teams of its own"),
    ],
)
def test_what_is_wrong_with_the_file_is_named(
    tmp_path: Path, catalogue: str, text: str | None, message: str
) -> None:
    """The error names option and file."""
    file = tmp_path / "teams.toml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError) as refusal:
        with_teams(catalogue, file)
    assert message in str(refusal.value)
    assert f"--teams {file}" in str(refusal.value)
