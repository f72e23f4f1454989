"""Attacks on four eyes: one person, with all the tokens that one person can have, acts as two."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from tests.integration.gateway.world import World

ROOT = "/operator/v1"
ADMIN = ("tokens:*", "revocations:*", "workers:*", "policy:*", "approvals:read", "audit:read")
POOL = {"kind": "pool", "value": "eu-west-1/gpu"}


def made(answer: httpx.Response) -> dict[str, Any]:
    """The proposal that an action became."""
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()["proposal"]
    return found


def decide(client: httpx.Client, proposal: dict[str, Any], what: str = "approve") -> httpx.Response:
    """Approve, refuse or collect."""
    return client.post(f"{ROOT}/proposals/{proposal['id']}/{what}")


def approved_token(world: World, owner: str, *, kind: str = "access", **more: Any) -> str:
    """A child of the owner's token, approved by another person."""
    asked = {"kind": kind, "owner": "second", "scopes": list(ADMIN), **more}
    with (
        world.operator(world.access_token(*ADMIN, owner=owner)) as client,
        world.operator(world.access_token(*ADMIN, owner="approver-of-children")) as other,
    ):
        proposal = made(client.post(f"{ROOT}/tokens", json={"token": asked}))
        assert decide(other, proposal).status_code == 200
        token: str = decide(client, proposal, "collect").json()["token"]
        return token


def proposer_approves(world: World) -> None:
    """The token that proposed approves."""
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        proposal = made(ann.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
        assert decide(ann, proposal).status_code == 403
    assert not world.revocations()


def second_token_of_the_owner_approves(world: World) -> None:
    """Another token of the same owner, in other letters, or below it, approves."""
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        proposal = made(ann.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
    for owner in ("ann", "Ann", "ANN/ci", "ann/other"):
        with world.operator(world.access_token(*ADMIN, owner=owner)) as again:
            answer = decide(again, proposal)
            assert (answer.status_code, "another owner" in answer.text) == (403, True), owner
    assert not world.revocations()


def child_approves(world: World) -> None:
    """A child of the proposer's token approves, and a parent what its child proposed."""
    with world.operator(world.access_token(*ADMIN, owner="cat")) as cat:
        asked = {"kind": "access", "owner": "second", "scopes": list(ADMIN)}
        proposal = made(cat.post(f"{ROOT}/tokens", json={"token": asked}))
        with world.operator(world.access_token(*ADMIN, owner="dan")) as dan:
            assert decide(dan, proposal).status_code == 200
        with world.operator(decide(cat, proposal, "collect").json()["token"]) as child:
            ours = made(cat.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
            assert decide(child, ours).status_code == 403
            theirs = made(child.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
            assert decide(cat, theirs).status_code == 403
    assert not world.revocations()


def descendant_under_another_owner(world: World) -> None:
    """A child whose row names another owner, which only the database could have done, still descends from the proposer's."""
    token = approved_token(world, "eve")
    with world.metadata.session() as session:
        from airbridge.executor.ledger.identity.models import TokenRow
        from airbridge.executor.ledger.identity.tokens import hash_of

        row = session.query(TokenRow).filter(TokenRow.hash == hash_of(token)).one()
        row.owner, parent = "somebody", row.parent_id
        session.commit()
    with world.operator(token) as child:
        proposal = made(child.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
    with world.metadata.session() as session:
        session.get(TokenRow, parent).owner = "someone-else"
        session.commit()
    # The parent itself is not known to the attacker any more; a sibling will do.
    sibling = _sibling(world, parent)
    with world.operator(sibling) as other:
        answer = decide(other, proposal)
        assert (answer.status_code, "same token" in answer.text) == (403, True), answer.text


def _sibling(world: World, parent: str) -> str:
    from datetime import timedelta

    from airbridge.control_plane.identity import tokens
    from airbridge.executor.ledger.identity.models import TokenRow

    with world.metadata.session() as session:
        row = session.get(TokenRow, parent)
        issued = tokens.create_access(
            session,
            scopes=ADMIN,
            owner="x",
            actor="test",
            ttl=timedelta(minutes=5),
            parent=tokens.Parent(row.id, row.owner, row.expires_at),
        )
        session.commit()
        return issued.text


def approver_without_the_scope(world: World) -> None:
    """Somebody who may not revoke this approves its revocation, or refuses it."""
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        proposal = made(ann.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
    for scopes in (
        ("approvals:read",),
        ("revocations:write worker/*",),
        ("revocations:read", "tokens:*", "workers:*"),
    ):
        with world.operator(world.access_token(*scopes, owner="bob")) as bob:
            assert decide(bob, proposal).status_code == 403, scopes
            assert decide(bob, proposal, "refuse").status_code == 403, scopes
    assert not world.revocations()


def approver_gives_more_than_it_has(world: World) -> None:
    """A token's scopes must be covered by the approver's too."""
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        asked = {"kind": "access", "owner": "ci", "scopes": ["policy:write"]}
        proposal = made(ann.post(f"{ROOT}/tokens", json={"token": asked}))
    with world.operator(world.access_token("tokens:create", owner="bob")) as bob:
        assert decide(bob, proposal).status_code == 403


def stolen_token_leaves_proposals(world: World) -> None:
    """What a revoked token proposed is not approved any more."""
    token = world.access_token(*ADMIN, owner="mallory")
    with world.operator(token) as thief:
        proposal = made(thief.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
        # Ending oneself needs nobody.
        assert thief.delete(f"{ROOT}/tokens/{proposal['token']}").status_code == 200
    with world.operator(world.access_token(*ADMIN, owner="bob")) as bob:
        answer = decide(bob, proposal)
        assert (answer.status_code, "was revoked" in answer.text) == (409, True)
    assert not world.revocations()


def foreign_token_is_collected(world: World) -> None:
    """An approved token is collected by somebody else, by its approver, or twice."""
    asked = {"kind": "join", "region": "eu-west-1"}
    with (
        world.operator(world.access_token(*ADMIN, owner="ann")) as ann,
        world.operator(world.access_token(*ADMIN, owner="ann")) as again,
        world.operator(world.access_token(*ADMIN, owner="bob")) as bob,
    ):
        proposal = made(ann.post(f"{ROOT}/tokens", json={"token": asked}))
        assert decide(ann, proposal, "collect").status_code == 409
        assert decide(bob, proposal).status_code == 200
        for other in (again, bob):
            assert decide(other, proposal, "collect").status_code == 403
        with ThreadPoolExecutor(4) as threads:
            codes = list(threads.map(lambda _: decide(ann, proposal, "collect").status_code, range(8)))
        assert sorted(codes) == [200, *[409] * 7]


def one_proposal_has_two_effects(world: World) -> None:
    """A proposal is approved and refused by many at once: one decision counts."""
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        proposal = made(
            ann.post(f"{ROOT}/revocations", json=POOL | {"value": "eu-west-1/twice", "reason": "x"})
        )

    def race(number: int) -> int:
        with world.operator(world.access_token(*ADMIN, owner=f"bob-{number}")) as bob:
            return decide(bob, proposal, "approve" if number % 2 else "refuse").status_code

    with ThreadPoolExecutor(6) as threads:
        codes = sorted(threads.map(race, range(6)))
    assert codes == [200, *[409] * 5]
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        for row in world.revocations():
            again = made(ann.delete(f"{ROOT}/revocations", params={"kind": row.kind, "value": row.value}))
            with world.operator(world.access_token(*ADMIN, owner="bob")) as bob:
                assert decide(bob, again).status_code == 200


def glass_is_broken_without_the_scope(world: World) -> None:
    """``break_glass`` without its scope, with a wildcard of another resource, and for what gives rights."""
    body = POOL | {"reason": "x", "break_glass": True}
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        assert ann.post(f"{ROOT}/revocations", json=body).status_code == 403
        assert ann.delete(f"{ROOT}/revocations", params=POOL | {"break_glass": "true"}).status_code == 400
        asked = {"kind": "join", "region": "eu-west-1"}
        assert ann.post(f"{ROOT}/tokens", json={"token": asked, "break_glass": True}).status_code == 400
    assert not world.revocations()
    assert not world.audited("break_glass.used")


def proposals_fill_the_table(world: World) -> None:
    """One owner's tokens make proposals without end."""
    codes = set()
    for owner in ("flooder", "flooder/ci"):
        with world.operator(world.access_token(*ADMIN, owner=owner)) as flooder:
            for number in range(30):
                body = POOL | {"value": f"eu-west-1/p{number}", "reason": "x"}
                codes.add(flooder.post(f"{ROOT}/revocations", json=body).status_code)
    assert codes == {202, 409}
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        made(ann.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))


APPROVAL_ATTACKS: tuple[Callable[[World], None], ...] = (
    proposer_approves,
    second_token_of_the_owner_approves,
    child_approves,
    descendant_under_another_owner,
    approver_without_the_scope,
    approver_gives_more_than_it_has,
    stolen_token_leaves_proposals,
    foreign_token_is_collected,
    one_proposal_has_two_effects,
    glass_is_broken_without_the_scope,
    proposals_fill_the_table,
)
