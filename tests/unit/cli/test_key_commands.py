"""``airbridge ca`` on a secrets directory whose gateway cannot be reached."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airbridge.control_plane.cli import app
from airbridge.control_plane.identity import secrets
from airbridge.control_plane.identity.ca import ISSUING_LIFETIME, key_id
from airbridge.control_plane.local import platform


def rotate(directory: Path, tmp_path: Path) -> int:
    """Return the exit status of `airbridge ca rotate`."""
    words = ["ca", "rotate", "--secrets-dir", str(directory), "--trust-domain", "x.test", "--json"]
    return CliRunner().invoke(app.build(), words, env={"AIRBRIDGE_DIR": str(tmp_path / "none")}).exit_code


@pytest.mark.parametrize(("left", "rotated"), [(timedelta(0), True), (timedelta(days=1), False)])
def test_ended_ca_is_rotated_without_gateway(tmp_path: Path, left: timedelta, rotated: bool) -> None:
    """Once the issuing CA has ended, no worker can be asked for over the gateway: rotation does not need it."""
    directory = tmp_path / "secrets"
    secrets.create_all(directory, "x.test", datetime.now(UTC) - ISSUING_LIFETIME + left)
    before = secrets.load_ca(directory).key_id
    assert (rotate(directory, tmp_path) == 0) is rotated
    assert (secrets.load_ca(directory).key_id != before) is rotated


def test_local_platform_replaces_its_ending_ca(tmp_path: Path) -> None:
    """`airbridge up` creates keys, keeps them, and makes a new issuing CA within thirty days of the end."""
    directory, created = tmp_path / "secrets", datetime(2026, 1, 1, tzinfo=UTC)
    assert not platform.prepare_secrets(directory, created)
    before = secrets.load_ca(directory)
    assert not platform.prepare_secrets(directory, created + timedelta(days=300))
    assert platform.prepare_secrets(directory, created + timedelta(days=400))
    now = secrets.load_ca(directory)
    assert key_id(now.root) == key_id(before.root)
    assert now.certificate.not_valid_after_utc > created + timedelta(days=700)
