"""Reload of the policy's file: which rules are in force, and what of the change is audited."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.support.airflow_home import Metadata
from tests.unit.control_plane.test_rules import TASK

from airbridge.control_plane.policy import reload
from airbridge.control_plane.policy.decisions import Access
from airbridge.control_plane.policy.reload import ReloadedPolicy
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.ledger.models import AuditRow


def rules(**names: str) -> str:
    """A policy: which connection each rule allows."""
    each = (
        f'[[rule]]\nname = "{name}"\ndags = ["*"]\nconnections.read = ["{value}"]\n'
        for name, value in names.items()
    )
    return "schema = 1\n" + "".join(each)


@pytest.fixture
def file(tmp_path: Path, sqlite_metadata: Metadata) -> Iterator[Path]:
    path = tmp_path / "policy.toml"
    path.write_text(rules(kept="a", changed="b", removed="c"))
    return path


def audited(metadata: Metadata) -> list[tuple[str, str, dict[str, Any]]]:
    with metadata.session() as session:
        rows = session.query(AuditRow).order_by(AuditRow.id)
        return [(row.event, row.verdict, row.detail) for row in rows]


def allowed(policy: ReloadedPolicy, name: str) -> bool:
    return policy.judge(TASK, Access("connections:read", name)).allowed


def test_changed_rules_are_named(file: Path, sqlite_metadata: Metadata) -> None:
    """The change is in force at once; the audit row has both digests and tells added, removed and changed rules apart."""
    policy = ReloadedPolicy(file)
    before = policy.rules
    assert (allowed(policy, "b"), allowed(policy, "d")) == (True, False)
    file.write_text(rules(kept="a", changed="d", added="e"))
    policy.reload()
    assert (allowed(policy, "b"), allowed(policy, "d")) == (False, True)
    assert before is not None
    assert policy.rules is not None
    assert audited(sqlite_metadata) == [
        (
            "policy.changed",
            "changed",
            {
                "file": str(file),
                "digest": policy.rules.digest,
                "digest_before": before.digest,
                "rules_added": ["added"],
                "rules_removed": ["removed"],
                "rules_changed": ["changed"],
            },
        )
    ]


def test_same_content_changes_nothing(file: Path, sqlite_metadata: Metadata) -> None:
    """A file that is only written again is neither a change nor audited."""
    policy = ReloadedPolicy(file)
    before = policy.rules
    file.write_text(file.read_text())
    policy.reload()
    assert policy.rules is before
    assert audited(sqlite_metadata) == []


def test_each_error_is_audited_once(file: Path, sqlite_metadata: Metadata) -> None:
    """A malformed file leaves the rules in force; its error is recorded when it is new, or back after a sound file."""
    good = file.read_text()
    policy = ReloadedPolicy(file)
    for content in ("schema =", "schema =", "schema = 7", good, "schema = 7"):
        file.write_text(content)
        policy.reload()
        assert allowed(policy, "a")
    found = audited(sqlite_metadata)
    assert [(event, verdict) for event, verdict, _ in found] == [("policy.refused", "denied")] * 3
    reasons = [detail["why"] for _, _, detail in found]
    assert "not TOML" in reasons[0]
    assert reasons[1] == reasons[2] != reasons[0]
    assert {detail["file"] for _, _, detail in found} == {str(file)}


def test_gateway_needs_a_sound_policy(file: Path) -> None:
    """A gateway does not start with a policy that it cannot read."""
    file.write_text("schema =")
    with pytest.raises(ConfigurationError, match="not TOML"):
        ReloadedPolicy(file)


def test_no_file_means_own_only(sqlite_metadata: Metadata) -> None:
    """Without a file nothing beyond a task's own is allowed, and there is nothing to reload."""
    policy = ReloadedPolicy(None)
    policy.reload()
    assert policy.rules is None
    assert not allowed(policy, "a")
    assert audited(sqlite_metadata) == []


def test_rules_in_force_outlive_the_audit(file: Path, sqlite_metadata: Metadata) -> None:
    """A database that cannot store the audit row does not keep the change from being in force."""
    policy = ReloadedPolicy(file)
    with sqlite_metadata.engine.begin() as connection:
        connection.execute(text("ALTER TABLE airbridge_audit RENAME TO elsewhere"))
    file.write_text(rules(other="z"))
    policy.reload()
    assert allowed(policy, "z")


@pytest.mark.parametrize("with_file", [True, False])
def test_file_is_polled(
    file: Path, sqlite_metadata: Metadata, monkeypatch: pytest.MonkeyPatch, with_file: bool
) -> None:
    """A running gateway records the rules that it starts with, and takes up a change by itself."""
    monkeypatch.setattr(reload, "POLL_SECONDS", 0.01)
    policy = ReloadedPolicy(file if with_file else None)

    async def scenario() -> None:
        running = asyncio.create_task(policy.run())
        while not audited(sqlite_metadata):
            await asyncio.sleep(0.01)
        file.write_text(rules(other="z"))
        while with_file and not allowed(policy, "z"):
            await asyncio.sleep(0.01)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(asyncio.wait_for(scenario(), 30))
    event, verdict, detail = audited(sqlite_metadata)[0]
    assert (event, verdict) == ("policy.loaded", "changed")
    if with_file:
        assert (detail["digest"], detail["rules_added"]) != (None, [])
        assert detail["rules_added"] == ["changed", "kept", "removed"]
    else:
        assert detail == {}
