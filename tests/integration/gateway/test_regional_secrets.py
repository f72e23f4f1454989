"""Secrets of a region's own backend, at the gateway: policy and residency decide by name, and the audit trail has the read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.integration.gateway.test_policy import CLAIM, ask, connection, message
from tests.integration.gateway.world import World

READS = CLAIM + (
    '[[rule]]\nname = "read"\ndags = ["*"]\nconnections.read = ["*_db"]\nvariables.read = ["*"]\nvariables.write = ["*"]\n'
    '[[residency]]\nname = "kept"\nconnections = ["kept_*"]\nvariables = ["kept_*"]\nwhere = "region"\n'
    '[[residency]]\nname = "central"\nconnections = ["central_*"]\nwhere = "home"\n'
    '[[residency]]\nname = "abroad"\nconnections = ["us_*"]\nwhere = ["us-east-1"]\n'
)


def places(result: Any) -> list[str]:
    found: list[str] = json.loads(result.body or "")["places"]
    return found


def test_residency_decides_where_secret_is_read(world: World) -> None:
    """Without a rule the region is asked first and then the control plane; a rule leaves one of them, or none, and is named."""
    [item] = world.items()
    worker = world.worker()
    with world.under(READS):
        grant = worker.grant(item)

        def read(path: str) -> Any:
            return ask(worker, grant, 1, "GET", path)

        assert places(read("regional-secrets/connections/free_db")) == ["home", "region"]
        assert places(read("regional-secrets/connections/kept_db")) == ["region"]
        assert places(read("regional-secrets/connections/central_db")) == ["home"]
        assert places(read("regional-secrets/variables/kept_key")) == ["region"]
        elsewhere = read("regional-secrets/connections/us_db")
        assert elsewhere.status == 403
        assert "residency rule 'abroad' keeps 'us_db' in us-east-1" in message(elsewhere)
        unlisted = read("regional-secrets/connections/payroll")
        assert (unlisted.status, "connections.read" in message(unlisted)) == (403, True)


def test_home_does_not_hand_out_what_region_keeps(world: World) -> None:
    """A worker that asks the control plane all the same is refused, and so is a write of such a variable."""
    connection(world, "kept_db")
    [item] = world.items()
    worker = world.worker()
    with world.under(READS):
        grant = worker.grant(item)
        refused = ask(worker, grant, 1, "GET", "connections/kept_db")
        assert (refused.status, "hunter2" in (refused.body or "")) == (403, False)
        assert "residency rule 'kept'" in message(refused)
        written = ask(worker, grant, 2, "PUT", "variables/kept_key", {"val": "secret"})
        assert (written.status, "residency rule 'kept'" in message(written)) == (403, True)
    assert {row.rule for row in world.audited("call.denied", item_id=item)} == {"residency: kept"}


def test_read_is_audited_with_backend(world: World) -> None:
    """The trail says which task was allowed to read what from which backend."""
    [item] = world.items()
    worker = world.worker()
    with world.under(READS):
        ask(worker, worker.grant(item), 1, "GET", "regional-secrets/connections/kept_db")
    [row] = world.audited("secret.read", item_id=item)
    assert (row.verdict, row.rule) == ("granted", "policy rule read")
    assert (row.detail["name"], row.detail["backend"]) == ("kept_db", "tests.Backend")
    assert row.detail["places"] == ["region"]


def test_pool_without_backend_is_refused(world: World) -> None:
    """Nothing is granted where no backend is configured."""
    [item] = world.items(region="us-east-1")
    worker = world.worker("us-east-1")
    with world.under(READS):
        refused = ask(worker, worker.grant(item), 1, "GET", "regional-secrets/connections/free_db")
    assert (refused.status, "has no secrets_backend" in message(refused)) == (403, True)


@pytest.mark.parametrize(
    ("residency", "error"),
    [
        ('where = "mars"', "where"),
        ("where = []", "where"),
        ("", "where"),
        ('where = "home"\nplaces = []', "places"),
    ],
)
def test_wrong_residency_is_refused(residency: str, error: str) -> None:
    """A residency rule that is wrong is named, with its key."""
    from airbridge.control_plane.policy.rules import RulePolicy
    from airbridge.core.exceptions import ConfigurationError

    text = f'schema = 1\n[[residency]]\nname = "kept"\n{residency}\n'
    with pytest.raises(ConfigurationError, match=error):
        RulePolicy.parse(text.encode(), "policy.toml")
