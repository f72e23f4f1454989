"""Attacks with a copied identity, or with a join credential: findings 5, 8 and 9."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from sqlalchemy import text
from tests.integration.gateway.world import Worker as Host
from tests.integration.gateway.world import World, csr_pem
from tests.security.registry import attack

from airbridge.core.protocol import Credentials

# The default of [airbridge] identity_grace: for so long the use of a replaced certificate is no evidence of a copy.
GRACE = 60


def copy_of(victim: Host) -> Host:
    """Return a second host with the victim's key, certificate and access token."""
    thief = Host(victim.world, victim.name.region, victim.name.pool, victim.name.worker)
    thief.key, thief.rejoin_key = victim.key, victim.rejoin_key
    thief.present(victim.certificate_pem, victim.token)
    return thief


def renew(host: Host, *, adopt: bool = True) -> httpx.Response:
    """Renew over the host's own connection, and use the answer."""
    answer = host.post("renew", {"csr_pem": csr_pem(host.key), "versions": host.versions})
    if adopt and answer.status_code == 200:
        host.use(Credentials.model_validate_json(answer.content))
    return answer


def enrol(host: Host, join_token: str) -> httpx.Response:
    """Enrol with a join token; use the identity if it is granted."""
    host.present(None, "")
    answer = host.post("enrol", host.enrolment(join_token))
    if answer.status_code == 200:
        host.use(Credentials.model_validate_json(answer.content))
    return answer


def beats(host: Host) -> bool:
    """Return whether the host's heartbeat is answered."""
    return host.try_beat().status_code == 200


def let_pass(world: World, seconds: float) -> None:
    """Let time pass: move every time by which identities are judged into the past."""
    moved = {
        "airbridge_certificate": ("issued_at", "expires_at", "used_at", "ended_at", "moved_at"),
        "airbridge_worker": ("last_heartbeat_at", "certificate_expires_at", "enrolled_at"),
        "airbridge_work_item": ("claimed_at", "renewed_at", "lease_until", "lost_at"),
    }
    with world.metadata.session() as session:
        for table, columns in moved.items():
            changes = ", ".join(f"{name} = {name} - interval '{seconds} seconds'" for name in columns)
            session.execute(text(f"UPDATE {table} SET {changes}"))
        session.commit()


def _both_stopped(world: World, victim: Host, thief: Host) -> None:
    assert not beats(victim)
    assert not beats(thief)
    assert world.audited("identity.forked", worker_id=victim.name.worker)
    [stopped] = [row for row in world.revocations() if row.value == victim.name.worker]
    assert "identity forked" in stopped.reason


@attack(8)
def copied_identity_renews_first(world: World) -> None:
    """A thief renews a copied certificate and goes on with the child; the victim's own use of the parent gives it away."""
    victim = world.worker()
    victim.beat()
    thief = copy_of(victim)
    renew(thief)
    thief.beat()
    let_pass(world, GRACE + 1)
    assert not beats(victim)
    _both_stopped(world, victim, thief)


@attack(8)
def copied_identity_renews_too(world: World) -> None:
    """Thief and victim renew the same certificate: the child that is used second gives them away."""
    victim = world.worker()
    victim.beat()
    thief = copy_of(victim)
    renew(thief)
    renew(victim)
    victim.beat()
    assert not beats(thief)
    _both_stopped(world, victim, thief)


@attack(8)
def copied_identity_after_enrolment(world: World) -> None:
    """Both renew the same certificate, then the victim enrols anew: the thief's child is no longer good, nor can it be renewed."""
    victim = world.worker()
    victim.beat()
    thief = copy_of(victim)
    renew(thief)
    thief.beat()
    renew(victim)
    assert enrol(victim, world.join_token()).status_code == 200
    victim.beat()
    assert not beats(thief)
    assert renew(thief).status_code == 403
    assert renew(victim).status_code == 200


@attack(8)
def unused_child_of_the_copy(world: World) -> None:
    """A thief renews in secret, never uses the child, and comes back when the victim has renewed twice."""
    victim = world.worker()
    victim.beat()
    thief = copy_of(victim)
    renew(thief)
    for _ in range(2):
        renew(victim)
        victim.beat()
    assert not beats(thief)
    _both_stopped(world, victim, thief)


@attack(9)
def join_takes_a_live_name(world: World) -> None:
    """A join credential of the pool enrols the name of a worker that is at work."""
    victim = world.worker()
    victim.beat()
    thief = Host(world, victim.name.region, victim.name.pool, victim.name.worker)
    token = world.join_token(uses=5)
    answer = enrol(thief, token)
    assert (answer.status_code, answer.json()["reason"]) == (409, "name_in_use")
    victim.beat()
    assert world.audited("request.refused")[-1].rule == "one live generation per name"


@attack(9)
def join_takes_a_name_that_holds_work(world: World) -> None:
    """A worker is cut off while its task runs: its name cannot be taken until the attempt is fenced, however long it is silent."""
    victim = world.worker()
    victim.grant(world.items()[0])
    let_pass(world, 300)
    thief = Host(world, victim.name.region, victim.name.pool, victim.name.worker)
    answer = enrol(thief, world.join_token())
    assert (answer.status_code, answer.json()["reason"]) == (409, "name_in_use")


@attack(9)
def forged_rejoin_proof(world: World) -> None:
    """A proof by another key, for another request, or with the victim's public key alone takes over no live name."""
    victim = world.worker()
    victim.beat()
    thief = Host(world, victim.name.region, victim.name.pool, victim.name.worker)
    thief.present(None, "")
    body, own = thief.enrolment(world.join_token(uses=9)), victim.enrolment("unused")
    forgeries: list[tuple[dict[str, Any] | None, int]] = [
        (None, 409),
        # valid for the thief's own key, which is not the one that the name was enrolled with
        (body["rejoin"], 409),
        # the victim's proof, made for another request
        (own["rejoin"], 403),
        ({**body["rejoin"], "public_key": own["rejoin"]["public_key"]}, 403),
        ({"public_key": "AA", "signature": "AA"}, 403),
    ]
    for proof, status in forgeries:
        assert thief.post("enrol", body | {"rejoin": proof}).status_code == status
    victim.beat()


@attack(9)
def bound_token_for_another_name(world: World) -> None:
    """A join token that is bound to a name enrols no other."""
    token = world.join_token(worker="edge-7", uses=5)
    stranger = Host(world, "eu-west-1", "default", "edge-8")
    assert enrol(stranger, token).status_code == 403
    assert enrol(Host(world, "eu-west-1", "default", "edge-7"), token).status_code == 200


IDENTITY_ATTACKS: tuple[Callable[[World], None], ...] = (
    copied_identity_renews_first,
    copied_identity_renews_too,
    copied_identity_after_enrolment,
    unused_child_of_the_copy,
    join_takes_a_live_name,
    join_takes_a_name_that_holds_work,
    forged_rejoin_proof,
    bound_token_for_another_name,
)
