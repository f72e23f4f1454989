"""Attacks with an operator's access token: finding 11."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import httpx
from tests.integration.gateway.world import World
from tests.security.registry import attack

from airbridge.executor.ledger.identity import tokens

ROOT = "/operator/v1"
# The longest lifetime that the API accepts.
YEAR = 366 * 86_400


def _make(operator: httpx.Client, **asked: Any) -> dict[str, Any]:
    body = {"kind": "access", "owner": "ceo", "scopes": ["workers:read"], **asked}
    answer = operator.post(f"{ROOT}/tokens", json={"token": body})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


@attack(11)
def child_outlives_its_parent(world: World) -> None:
    """A token of six seconds makes children, of either kind, that are good for a year, or for the hour of the default."""
    with world.operator(world.access_token("tokens:*", "workers:read", ttl=timedelta(seconds=6))) as operator:
        body = {"kind": "access", "owner": "ceo", "scopes": ["workers:read"], "ttl_seconds": YEAR}
        join = {"kind": "join", "region": "eu-west-1", "ttl_seconds": 90 * 86_400}
        for wanted in (body, join):
            refused = operator.post(f"{ROOT}/tokens", json={"token": wanted})
            assert refused.status_code == 400
            assert "a token ends with the one that it is made with" in refused.json()["detail"]
        child = _make(operator)
        listed = {row["id"]: row for row in operator.get(f"{ROOT}/tokens").json()["tokens"]}
        join = {"kind": "join", "region": "eu-west-1"}
        joined = operator.post(f"{ROOT}/tokens", json={"token": join}).json()
    parent = listed[child["parent"]]
    for made in (child, joined):
        assert made["parent"] == parent["id"]
        beyond = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(parent["expires_at"])
        assert beyond < timedelta(seconds=1)


@attack(11)
def child_under_another_owner(world: World) -> None:
    """A token creates one under another owner's name: the audit trail names its own owner, and the token it used."""
    with world.operator(world.access_token("tokens:*", "workers:read")) as operator:
        child = _make(operator)
        assert child["owner"] == "test/ceo"
        with world.operator(child["token"]) as forged:
            assert forged.post(f"{ROOT}/workers/any/drain").status_code == 403
    created = world.audited("token.created")[-1]
    assert (created.detail["owner"], created.detail["parent"]) == ("test/ceo", child["parent"])
    refused = world.audited("request.refused")[-1]
    assert (refused.actor, refused.detail["token"]) == ("operator:test/ceo", child["id"])


@attack(11)
def child_survives_its_parent(world: World) -> None:
    """A revoked token leaves children and grandchildren behind, and a join token."""
    with world.operator(world.access_token("tokens:*", "workers:read")) as operator:
        child = _make(operator, owner="ci", scopes=["tokens:*", "workers:read"])
        with world.operator(child["token"]) as second:
            grandchild = _make(second)
            join = {"kind": "join", "region": "eu-west-1", "uses": 9}
            joined = second.post(f"{ROOT}/tokens", json={"token": join}).json()
        with world.operator(grandchild["token"]) as third:
            assert third.get(f"{ROOT}/workers").status_code == 200
        assert operator.delete(f"{ROOT}/tokens/{child['id']}").status_code == 200
    for token in (child["token"], grandchild["token"]):
        with world.operator(token) as left:
            assert left.get(f"{ROOT}/workers").status_code == 401
    host = world.worker()
    host.present(None, "")
    assert host.post("enrol", host.enrolment(joined["token"])).status_code == 403
    revoked = {row.detail["token"]: row for row in world.audited("token.revoked")}
    assert revoked.keys() >= {child["id"], grandchild["id"], joined["id"]}
    assert revoked[grandchild["id"]].detail["by_token"] == child["parent"]


@attack(11)
def chain_longer_than_the_stack(world: World) -> None:
    """A token makes one, which makes another, and so on, until no revocation of the first one succeeds."""
    secret, first = "abo_first", None
    with world.metadata.session() as session:
        parent = None
        for _ in range(1500):
            made = tokens.create(
                session,
                kind="access",
                secret=secret,
                owner="test",
                scopes=["tokens:*"],
                ttl_seconds=60,
                parent_id=parent,
            )
            first, parent, last, secret = first or made.id, made.id, secret, f"abo_{made.id}"
        session.commit()
    with world.operator(world.access_token("tokens:*")) as operator:
        operator.timeout = httpx.Timeout(60)
        assert operator.delete(f"{ROOT}/tokens/{first}").status_code == 200
    with world.operator(last) as operator:
        assert operator.get(f"{ROOT}/tokens").status_code == 401


OPERATOR_ATTACKS: tuple[Callable[[World], None], ...] = (
    child_outlives_its_parent,
    child_under_another_owner,
    child_survives_its_parent,
    chain_longer_than_the_stack,
)
