"""The operators' listener: tokens and their scopes, workers, pushes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from tests.integration.gateway.world import World
from tests.security.attacks.operators import OPERATOR_ATTACKS

from airbridge.core.code.environment import Build, Environment, this_platform
from airbridge.core.code.snapshot import hex_of, pack
from airbridge.executor.bundle_settings import PackageSettings
from airbridge.executor.bundles.environments.inputs import Inputs
from airbridge.executor.bundles.environments.requirements import RequirementFiles

ROOT = "/operator/v1"


def test_without_a_live_token_nothing_answers(world: World) -> None:
    """No token, an unknown, an expired, a join token or a worker's: 401 everywhere."""
    expired = world.access_token("workers:read", ttl=timedelta(microseconds=1))
    for token in (None, "abo_unknown", expired, world.join_token(), world.worker().token):
        with world.operator(token) as operator:
            assert operator.get(f"{ROOT}/workers").status_code == 401
            assert operator.get(f"{ROOT}/tokens").status_code == 401
            assert (
                operator.post(f"{ROOT}/tokens", json={"token": {"kind": "join", "region": "x"}}).status_code
                == 401
            )
            assert operator.put(f"{ROOT}/dags/a", content=b"x").status_code == 401
            assert operator.post(f"{ROOT}/workers/x/revoke").status_code == 401


@pytest.mark.parametrize(
    ("scope", "method", "path", "body", "status"),
    [
        ("tokens:read", "GET", "workers", None, 403),
        ("workers:read", "GET", "tokens", None, 403),
        ("workers:read", "POST", "workers/any/drain", {}, 403),
        ("workers:drain", "POST", "workers/any/drain", {}, 404),
        ("workers:drain", "POST", "workers/any/revoke", {}, 403),
        ("workers:drain region=us-*", "POST", "workers/any/drain", {}, 403),
        ("dags:push team-a", "PUT", "dags/team-b", None, 403),
        ("dags:push team-a", "PUT", "dags/.hidden", None, 400),
        ("dags:push team-a", "PUT", "environments/team-a", None, 403),
        ("dags:push team-a", "PUT", f"environments/team-a/{0:064x}", None, 403),
        ("environments:push team-a", "PUT", "environments/team-b", None, 403),
        ("environments:push team-a", "PUT", "dags/team-a", None, 403),
        ("environments:push team-a", "PUT", "environments/team-a/ABC", None, 400),
        ("environments:push team-a", "PUT", "environments/team-a", {"manifest": 1}, 400),
        (
            "tokens:create join region=eu-*",
            "POST",
            "tokens",
            {"token": {"kind": "join", "region": "us-east-1"}},
            403,
        ),
        (
            "tokens:create join",
            "POST",
            "tokens",
            {"token": {"kind": "access", "owner": "me", "scopes": ["a:b"]}},
            403,
        ),
        (
            "tokens:*",
            "POST",
            "tokens",
            {"token": {"kind": "access", "owner": "me", "scopes": ["workers:*"]}},
            403,
        ),
        (
            "tokens:*",
            "POST",
            "tokens",
            {"token": {"kind": "access", "owner": "me", "scopes": ["nonsense"]}},
            400,
        ),
        ("tokens:*", "POST", "tokens", {"token": {"kind": "join", "region": "UPPER"}}, 400),
        ("tokens:*", "DELETE", "tokens/none", None, 404),
        ("workers:read", "GET", "nothing", None, 404),
        ("workers:read", "PATCH", "workers", None, 405),
    ],
)
def test_scope_is_limited_to_patterns(
    world: World, scope: str, method: str, path: str, body: object, status: int
) -> None:
    """Each action requires its own scope, within its patterns; a token cannot grant scopes beyond its own."""
    with world.operator(world.access_token(scope)) as operator:
        response = operator.request(method, f"{ROOT}/{path}", json=body)
    assert response.status_code == status, response.text
    if status == 403:
        assert world.audited("request.refused")[-1].actor == "operator:test"
    assert set(response.json()) == {"status", "reason", "detail"}


def test_token_lifecycle(world: World) -> None:
    """A created token works; the list shows no secret; a revoked token works no more."""
    with world.operator(world.access_token("tokens:*", "workers:read")) as operator:
        asked = {"token": {"kind": "access", "owner": "ci", "scopes": ["workers:read"]}}
        made = operator.post(f"{ROOT}/tokens", json=asked).json()
        listed = operator.get(f"{ROOT}/tokens")
        assert made["token"] not in listed.text
        assert made["id"] in {token["id"] for token in listed.json()["tokens"]}
        with world.operator(made["token"]) as ci:
            assert ci.get(f"{ROOT}/workers").status_code == 200
            assert operator.delete(f"{ROOT}/tokens/{made['id']}").json()["revoked_at"]
            assert ci.get(f"{ROOT}/workers").status_code == 401


def test_token_scopes_match_owner(world: World) -> None:
    """A scope with a pattern covers the tokens of matching owners, and shows and revokes no others."""
    with world.operator(world.access_token("tokens:*", "workers:read")) as operator:
        made = {}
        for owner in ("ci-team-a", "ann"):
            asked = {"token": {"kind": "access", "owner": owner, "scopes": ["workers:read"]}}
            made[owner] = operator.post(f"{ROOT}/tokens", json=asked).json()["id"]
    with world.operator(world.access_token("tokens:read test/ci-*", "tokens:revoke test/ci-*")) as operator:
        assert {"test/ci-team-a"} == {row["owner"] for row in operator.get(f"{ROOT}/tokens").json()["tokens"]}
        assert operator.delete(f"{ROOT}/tokens/{made['ann']}").status_code == 403
        assert operator.delete(f"{ROOT}/tokens/{made['ci-team-a']}").status_code == 200


def test_created_join_token_enrols_worker(world: World) -> None:
    """An operator's join token enrols a worker, which then shows up in the list."""
    with world.operator(world.access_token("tokens:create join region=eu-*", "workers:read")) as operator:
        asked = {"token": {"kind": "join", "region": "eu-west-1", "uses": 1}}
        made = operator.post(f"{ROOT}/tokens", json=asked).json()
        worker = world.worker(name="invited")
        worker.enrol(made["token"])
        found = {row["id"]: row for row in operator.get(f"{ROOT}/workers").json()["workers"]}
    assert (found["invited"]["region"], found["invited"]["pool"]) == ("eu-west-1", "default")


def test_worker_list_is_limited_by_scope(world: World) -> None:
    """A reader of one region sees that region's workers alone."""
    world.worker("us-east-1", name="visible-us")
    world.worker("eu-west-1", name="hidden-eu")
    with world.operator(world.access_token("workers:read region=us-*")) as operator:
        listed = {row["id"] for row in operator.get(f"{ROOT}/workers").json()["workers"]}
    assert "visible-us" in listed
    assert "hidden-eu" not in listed


def test_revoked_worker_stays_revoked(world: World) -> None:
    """Revocation refuses the next request, and no drain, resume or new enrolment brings the name back."""
    worker = world.worker(name="stolen")
    worker.beat()
    with world.operator(world.access_token("workers:*")) as operator:
        assert (
            operator.post(f"{ROOT}/workers/stolen/revoke", json={"comment": "lost laptop"}).status_code == 200
        )
        response = worker.post("claim", {"envelopes": ["x"]})
        assert (response.status_code, response.json()["reason"]) == (403, "revoked")
        assert operator.post(f"{ROOT}/workers/stolen/resume").status_code == 409
    body = {"method": "token", "token": world.join_token()}
    worker.present(None, "")
    again = worker.post(
        "enrol",
        {
            "region": "eu-west-1",
            "pool": "default",
            "worker": "stolen",
            # never read: the name is refused before it
            "csr_pem": "x",
            "join": body,
            "versions": {"airbridge": "0.1.0", "airflow": "3.0.4", "task_sdk": "1.0.4", "python": "3.11.1"},
        },
    )
    assert (again.status_code, again.json()["reason"]) == (403, "revoked")
    assert "worker.revoked" in {event.event for event in world.events("worker.revoked")}


def test_revoked_worker_works_once_its_revocation_is_removed(world: World) -> None:
    """It gets work: what the revocation had ordered ends with it."""
    worker = world.worker(name="found-again")
    worker.beat()
    with world.operator(world.access_token("workers:*", "revocations:*")) as operator:
        assert operator.post(f"{ROOT}/workers/found-again/revoke", json={}).status_code == 200
        target = {"kind": "worker", "value": "found-again"}
        assert operator.delete(f"{ROOT}/revocations", params=target).status_code == 200
    assert "drain" not in {each.kind for each in worker.beat().commands}
    [item] = world.items()
    assert worker.grant(item)


def test_maintenance_requires_comment(world: World) -> None:
    """A worker under maintenance gets an order to drain with the mandatory comment, and resume ends it."""
    worker = world.worker(name="disk-swap")
    worker.beat()
    with world.operator(world.access_token("workers:drain")) as operator:
        bare = operator.post(f"{ROOT}/workers/disk-swap/maintenance")
        assert (bare.status_code, bare.json()["reason"]) == (400, "malformed")
        given = operator.post(f"{ROOT}/workers/disk-swap/maintenance", json={"comment": "new disk"})
        assert (given.json()["wanted"], given.json()["comment"]) == ("maintenance", "new disk")
        orders = worker.beat().commands
        assert ("drain", "new disk") in {(each.kind, getattr(each, "detail", "")) for each in orders}
        assert operator.post(f"{ROOT}/workers/disk-swap/resume").json()["wanted"] == "active"
    assert [event.detail["comment"] for event in world.events("worker.maintenance_wanted")] == ["new disk"]


def test_push_is_published_or_refused(world: World) -> None:
    """A good archive gives a digest, the seconds of its check and an event; one that does not parse gives 422 with file and line."""
    with world.operator(world.access_token("dags:push team-*")) as operator:
        good = operator.put(f"{ROOT}/dags/team-a", content=b"tar")
        assert (good.status_code, good.json()) == (
            200,
            {"bundle": "team-a", "version": f"sha256:{3:064x}", "check_seconds": 1.5},
        )
        bad = operator.put(f"{ROOT}/dags/team-a", content=b"broken")
    assert (bad.status_code, bad.json()["detail"]) == (422, "dag.py, line 3: SyntaxError: invalid syntax")
    assert [event.detail["bundle"] for event in world.events("dags.pushed")] == ["team-a"]


def test_environment_is_taken_or_refused(world: World, tmp_path: Path) -> None:
    """An environment is offered, its archive sent and the offer repeated: then it is kept, with an event. A wrong archive is refused."""
    (tmp_path / "tiny.py").write_text("VERSION = 1\n")
    archive = pack(tmp_path)
    files = RequirementFiles("requirements.txt", {"requirements.txt": b"tiny\n"})
    inputs = Inputs.here(files, PackageSettings())
    manifest = Environment(
        inputs.digest, (Build(*this_platform(), archive.version, 13),), {"tiny": "1.0"}
    ).encoded()
    offer = {"manifest": manifest.decode(), "lock": "tiny==1.0\n", "inputs": inputs.encoded().decode()}
    path = f"{ROOT}/environments/team-a"
    with world.operator(world.access_token("environments:push team-*")) as operator:
        lacking = operator.put(path, json=offer)
        assert (lacking.status_code, lacking.json()["missing"]) == (200, [archive.version])
        assert not world.events("environment.pushed")
        wrong = operator.put(f"{path}/{'0' * 64}", content=archive.compressed())
        assert (wrong.status_code, "damaged or forged" in wrong.json()["detail"]) == (422, True)
        sent = operator.put(f"{path}/{hex_of(archive.version)}", content=archive.compressed())
        assert (sent.status_code, sent.json()["owed_to"]) == (200, [])
        kept = operator.put(path, json=offer)
        assert kept.json() == {"bundle": "team-a", "inputs": inputs.digest, "missing": []}
        bad = operator.put(path, json={**offer, "inputs": "{}"})
    assert (bad.status_code, "inputs.json" in bad.json()["detail"]) == (422, True)
    assert [event.detail["inputs"] for event in world.events("environment.pushed")] == [inputs.digest]


def test_listeners_do_not_share_endpoints(world: World) -> None:
    """An operator's token opens nothing on the edge listener, and its endpoints are not there."""
    worker = world.worker()
    assert worker.client.get(f"{ROOT}/workers").status_code == 404
    with world.operator(world.access_token("work:claim")) as operator:
        assert operator.post("/edge/v1/claim", json={"envelopes": ["x"]}).status_code == 404


@pytest.mark.parametrize("attack", OPERATOR_ATTACKS, ids=lambda attack: attack.__name__)
def test_operator_attack(world: World, attack: Callable[[World], None]) -> None:
    """A token makes no other one that reaches or lasts beyond it, under no name but its own, or that survives it."""
    attack(world)


@pytest.mark.parametrize(
    ("place", "detail"),
    [
        (
            {"region": "eu-west-2"},
            "there is no region 'eu-west-2'; did you mean 'eu-west-1'? regions: us-east-1, eu-west-1",
        ),
        ({"region": "us-east-1", "pool": "gpu"}, "region 'us-east-1' has no pool 'gpu'; its pools: default"),
    ],
)
def test_join_token_needs_a_place(world: World, place: dict[str, str], detail: str) -> None:
    """A join token for a region or pool that does not exist is refused with those that do."""
    with world.operator(world.access_token("tokens:create join")) as operator:
        response = operator.post(f"{ROOT}/tokens", json={"token": {"kind": "join", **place}})
    assert response.status_code == 400
    assert response.json()["detail"] == f"no worker could join with this token: {detail}"
