"""One live generation per name: copies of an identity, and join credentials, gain nothing that lasts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from tests.integration.gateway.world import Worker, World
from tests.security.attacks.identities import GRACE, IDENTITY_ATTACKS, beats, enrol, let_pass
from tests.security.attacks.stolen_host import STOLEN_HOST_ATTACKS

from airbridge.control_plane.exceptions import IdentityForked
from airbridge.control_plane.gateway.background.worker_expiry import WorkerExpiry
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.generations import IdentityRules, Use, admit
from airbridge.executor.ledger import workers
from airbridge.executor.ledger.identity.certificates import Ending, Known, Standing, judge


@pytest.mark.parametrize("attack", IDENTITY_ATTACKS, ids=lambda attack: attack.__name__)
def test_identity_attack(world: World, attack: Callable[[World], None]) -> None:
    """A copied identity or a join credential does not get, or keep, a name that is another host's."""
    attack(world)


@pytest.mark.parametrize("attack", STOLEN_HOST_ATTACKS, ids=lambda attack: attack.__name__)
def test_stolen_host(world: World, attack: Callable[[World], None]) -> None:
    """A stolen host can do what the security page states, for an hour of the gateway's time and after, and no more."""
    attack(world)


def test_two_addresses_are_reported_once(world: World) -> None:
    """A certificate that is used from two hosts in turn, beyond the grace, is reported once; a host that moves is not."""
    moving, copied = world.worker(), world.worker()
    rules = IdentityRules()
    for worker in (moving, copied):
        worker.beat()
        _seen_from(world, worker, "198.51.100.7", rules)
    let_pass(world, GRACE + 1)
    # Addresses of RFC 5737 stand for another host.
    for host in ("198.51.100.7", "127.0.0.1", "198.51.100.7", "127.0.0.1"):
        _seen_from(world, copied, host, rules)
    let_pass(world, GRACE + 1)
    _seen_from(world, moving, "198.51.100.7", rules)
    [reported] = world.audited("identity.two_addresses", worker_id=copied.name.worker)
    assert reported.detail["addresses"] == ["127.0.0.1", "198.51.100.7"]
    assert world.audited("identity.two_addresses", worker_id=moving.name.worker) == []


def test_two_addresses_can_stop(world: World) -> None:
    """With `identity_stop_two_addresses` the name is stopped."""
    worker = world.worker()
    rules = IdentityRules(two_addresses="stop")
    worker.beat()
    _seen_from(world, worker, "198.51.100.7", rules)
    let_pass(world, GRACE + 1)
    with pytest.raises(IdentityForked, match=r"used from 127\.0\.0\.1 and 198\.51\.100\.7"):
        _seen_from(world, worker, "127.0.0.1", rules)


def _seen_from(world: World, worker: Worker, host: str, rules: IdentityRules) -> None:
    assert worker.certificate_pem is not None
    leaf = x509.load_pem_x509_certificate(worker.certificate_pem.encode())
    certificate = PeerCertificate.of(leaf, leaf.fingerprint(hashes.SHA256()).hex())
    with world.metadata.session() as session:
        admit(session, Use(worker.name, certificate, f"{host}:1234"), rules)
        session.commit()


@pytest.mark.parametrize(
    ("ending", "seconds_ago", "generations_ago", "rejoined", "standing"),
    [
        (None, 0, 0, False, Standing.LIVE),
        (Ending.RENEWED, 59, 0, False, Standing.LIVE),
        (Ending.RENEWED, 61, 0, False, Standing.FORKED),
        (Ending.SUPERSEDED, 0, 0, False, Standing.FORKED),
        (Ending.GENERATION, 59, 1, True, Standing.ENDED),
        (Ending.GENERATION, 61, 1, True, Standing.FORKED),
        (Ending.GENERATION, 61, 1, False, Standing.ENDED),
        (Ending.GENERATION, 61, 2, True, Standing.ENDED),
        (Ending.RENEWED, 61, 1, True, Standing.ENDED),
        (Ending.FORKED, 0, 0, False, Standing.ENDED),
    ],
)
def test_standing_of_a_certificate(
    ending: Ending | None, seconds_ago: int, generations_ago: int, rejoined: bool, standing: Standing
) -> None:
    """The table: which use of an ended certificate is evidence of a copy, and which a request that was under way."""
    now = datetime(2026, 1, 31, tzinfo=UTC)
    ended = now - timedelta(seconds=seconds_ago) if ending else None
    known = Known("ab", 7, 7 + generations_ago, rejoined, now, ended, ending, "127.0.0.1")
    assert judge(known, now, timedelta(seconds=60)) is standing


def order(world: World, worker: Worker) -> tuple[str, str | None]:
    """Return the operator's order for a worker's name, and the comment."""
    with world.metadata.session() as session:
        row = workers.get(session, worker.name.worker)
        assert row is not None
        return row.wanted, row.comment


def ordered(world: World, worker: Worker, wanted: workers.Wanted) -> None:
    with world.metadata.session() as session:
        workers.set_wanted(session, worker.name.worker, wanted, "old disk")
        session.commit()


def test_lost_name_moves_to_another_pool(world: World) -> None:
    """A name whose host was lost, or stopped, may be enrolled by a host of another pool; a live one may not."""
    lost = world.worker()
    lost.beat()
    reused = Worker(world, "eu-west-1", "gpu", lost.name.worker)
    refused = enrol(reused, world.join_token(pool="gpu"))
    assert 403 == refused.status_code
    assert "is enrolled in default@eu-west-1, and in use: it was heard of" in refused.text
    let_pass(world, 3 * 3600)
    assert 200 == enrol(reused, world.join_token(pool="gpu")).status_code
    assert beats(reused)
    assert not beats(lost)


def test_order_ends_with_its_host(world: World) -> None:
    """A drain is of the host, not of the name: the next host of the name is active. Maintenance is ended by an operator."""
    drained, maintained = world.worker(), world.worker()
    for worker, wanted in ((drained, "draining"), (maintained, "maintenance")):
        worker.beat()
        ordered(world, worker, wanted)  # type: ignore[arg-type]  # literals of a tuple
    let_pass(world, 3 * 3600)
    for worker in (drained, maintained):
        successor = Worker(world, "eu-west-1", "default", worker.name.worker)
        assert 200 == enrol(successor, world.join_token()).status_code
    assert ("active", None) == order(world, drained)
    assert ("maintenance", "old disk") == order(world, maintained)


def test_restarted_host_stays_drained(world: World) -> None:
    """A host that proves that it is the same one keeps its order."""
    worker = world.worker()
    worker.beat()
    ordered(world, worker, "draining")
    assert 200 == enrol(worker, world.join_token()).status_code
    assert ("draining", "old disk") == order(world, worker)


def test_gateway_forgets_lost_workers(world: World) -> None:
    """The gateway removes the row of a worker that was silent for the set time, and records it; the name can be used anew."""
    lost, live = world.worker(), world.worker()
    for worker in (lost, live):
        worker.beat()
    let_pass(world, 30 * 3600)
    assert 200 == enrol(live, world.join_token()).status_code
    live.beat()
    assert lost.name.worker in WorkerExpiry(timedelta(hours=24)).turn()
    [event] = [each for each in world.events("worker.forgotten") if each.worker_id == lost.name.worker]
    assert ("default", "eu-west-1") == (event.detail["pool"], event.region)
    with world.metadata.session() as session:
        assert workers.get(session, lost.name.worker) is None
        assert workers.get(session, live.name.worker) is not None
    assert not beats(lost)
    assert (
        200
        == enrol(
            Worker(world, "eu-west-1", "gpu", lost.name.worker), world.join_token(pool="gpu")
        ).status_code
    )
