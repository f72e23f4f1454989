"""The command line that a platform in the background is started with."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from airbridge.control_plane.cli import app
from airbridge.control_plane.cli.commands import local
from airbridge.control_plane.local.launch import _command
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.services.aws import parse_regions


def test_every_option_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """`airbridge up` reads the same options from the command that `launch` makes of them."""
    given = Options(
        directory=Path("/tmp/state"),
        regions=parse_regions(["eu-west-1:default,gpu"]),
        workers_per_region=2,
        schedulers=3,
        slots=5,
        dags=Path("/tmp/dags"),
        port=8123,
        teams=Path("/tmp/teams.toml"),
        residency=Path("/tmp/residency.toml"),
        airflow={"core.parallelism": "7"},
        worker_env={"NAME": "value"},
    )
    defaults = Options(directory=Path("/"))
    same = [f.name for f in fields(Options) if getattr(given, f.name) == getattr(defaults, f.name)]
    assert same == ["terraform"], "this test gives every option a value of its own"
    read: list[Any] = []
    monkeypatch.setattr(local, "_up_here", lambda options, *_: read.append(options))
    result = CliRunner().invoke(app.build(), _command(given)[3:])
    assert result.exit_code == 0, result.output
    assert read == [given]
