"""A stolen worker host: everything in its memory and on its disk, played through for an hour and after (findings 8 and 9).

The thief has the private key, the certificate, the access token, the rejoin key, and the join token's file.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tests.integration.gateway.world import Worker as Host
from tests.integration.gateway.world import World, xcom
from tests.security.attacks.identities import GRACE, beats, copy_of, enrol, let_pass, renew
from tests.security.registry import attack

# Workers renew at half of a certificate's default lifetime of an hour.
HALF_LIFE = 1_800
MINUTE = 60


def _steal(world: World) -> tuple[Host, Host, str]:
    """Return a worker, a copy of it, and the join token on its disk (used up)."""
    token = world.join_token()
    victim = Host(world, "eu-west-1", "default", f"stolen-{next(world.number)}")
    victim.enrol(token)
    victim.beat()
    return victim, copy_of(victim), token


@attack(8)
def copied_host(world: World) -> None:
    """The host is copied and goes on: the copy lasts until the next renewal and the grace, half an hour, then both are stopped."""
    victim, thief, token = _steal(world)
    neighbour = world.worker()
    neighbours = neighbour.grant(world.items()[0])
    for _ in range(HALF_LIFE // (5 * MINUTE)):
        let_pass(world, 5 * MINUTE)
        assert beats(victim)
        assert beats(thief)
    [result] = thief.exchange(xcom(neighbours, 1, "stolen", "value")).results
    assert result.refused == "not_holder"
    assert renew(victim).status_code == 200
    assert beats(victim)
    let_pass(world, GRACE + 1)
    assert not beats(thief)
    assert not beats(victim)
    for host in (thief, victim):
        assert enrol(host, token).status_code == 403
        assert enrol(host, world.join_token()).json()["reason"] == "revoked"
    assert beats(neighbour)


@attack(8)
def host_taken_away(world: World) -> None:
    """The host is taken away and its identity not renewed: an hour later nothing of it is good for anything."""
    _, thief, token = _steal(world)
    try:
        for minutes in range(0, 60, 5):
            assert beats(thief), f"after {minutes} minutes"
            let_pass(world, 5 * MINUTE)
            world.clock.ahead += timedelta(minutes=5)
        world.clock.ahead += timedelta(minutes=1)
        answer = thief.try_beat()
        assert (answer.status_code, "expired" in answer.json()["detail"]) == (401, True)
        assert renew(thief).status_code == 401
        # The rejoin key is no credential: it takes a join token, and this one is used up.
        assert enrol(thief, token).status_code == 403
    finally:
        world.clock.ahead = timedelta(0)


@attack(8)
def host_that_renews(world: World) -> None:
    """The host is taken away and renews: it has its pool's work until its name is revoked; from then on, nothing."""
    victim, thief, token = _steal(world)
    # Two hours: twice the lifetime of the stolen certificate.
    for _ in range(4):
        let_pass(world, HALF_LIFE)
        assert renew(thief).status_code == 200
        assert beats(thief)
    with world.operator(world.access_token("workers:revoke")) as operator:
        path = f"/operator/v1/workers/{victim.name.worker}/revoke"
        assert operator.post(path, json={"comment": "stolen"}).status_code == 200
    assert not beats(thief)
    assert renew(thief).status_code == 403
    assert enrol(thief, world.join_token()).json()["reason"] == "revoked"
    assert enrol(thief, token).status_code == 403


@attack(9)
def copied_disk(world: World) -> None:
    """Only the disk is copied, while the join token is good: the thief takes the name over, and the host's own use stops both."""
    victim, _, _ = _steal(world)
    thief = Host(world, victim.name.region, victim.name.pool, victim.name.worker)
    thief.rejoin_key = victim.rejoin_key
    assert enrol(thief, world.join_token()).status_code == 200
    assert beats(thief)
    assert not beats(victim)
    let_pass(world, GRACE + 1)
    assert not beats(victim)
    assert not beats(thief)
    assert world.audited("identity.forked", worker_id=victim.name.worker)


STOLEN_HOST_ATTACKS: tuple[Callable[[World], None], ...] = (
    copied_host,
    host_taken_away,
    host_that_renews,
    copied_disk,
)
