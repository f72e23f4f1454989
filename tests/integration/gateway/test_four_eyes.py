"""Four eyes: operator actions that wait for a second operator of another owner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update
from tests.integration.gateway.world import World, running
from tests.security.attacks.approvals import ADMIN, APPROVAL_ATTACKS, POOL, ROOT, decide, made
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres
from typer.testing import CliRunner

from airbridge.control_plane.cli import app
from airbridge.control_plane.exceptions import Proposed, Refused
from airbridge.control_plane.gateway import approvals
from airbridge.control_plane.gateway.api.actions import ACTIONS
from airbridge.control_plane.policy.decisions import Access, TaskFacts
from airbridge.core import metrics
from airbridge.core.exceptions import ConfigurationError
from airbridge.executor.ledger.identity import proposals
from airbridge.executor.ledger.identity.models import ProposalRow, TokenRow
from airbridge.executor.setting_values import FourEyes
from airbridge.executor.settings import Settings

POLICY = """
schema = 1
[[rule]]
name = "{name}"
dags = ["etl"]
[rule.connections]
read = ["warehouse"]
"""
READS = (
    TaskFacts("", "", "etl", "", "", -1, "eu-west-1", "default", "", "", ""),
    Access("connections:read", "warehouse"),
)


@pytest.fixture(scope="module")
def world(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway that requires two persons for everything that it can."""
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path_factory.mktemp("gateway"), four_eyes=tuple(FourEyes)) as it,
    ):
        yield it
    postgres.drop(name)


def _approve(world: World, proposal: dict[str, Any]) -> dict[str, Any]:
    with world.operator(world.access_token(*ADMIN, owner="bob")) as bob:
        answer = decide(bob, proposal)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


@pytest.mark.parametrize("attack", APPROVAL_ATTACKS, ids=lambda attack: attack.__name__)
def test_one_person_is_not_two(world: World, attack: Callable[[World], None]) -> None:
    """No token of one person approves what another of the same person proposed, and no proposal has two effects."""
    attack(world)


def test_revocation_waits_for_a_second(world: World) -> None:
    """A revocation and its removal take effect when another owner approves, in the proposer's name, audited at each step."""
    worker = world.worker("eu-west-1", "default", "four-eyes-1")
    target = {"kind": "worker", "value": "four-eyes-1"}
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        proposal = made(ann.post(f"{ROOT}/revocations", json=target | {"reason": "host lost"}))
        assert (proposal["status"], proposal["owner"]) == ("proposed", "ann")
        assert proposal["payload"] == target | {"reason": "host lost"}
        worker.beat()
        done = _approve(world, proposal)
        assert (done["proposal"]["status"], done["result"]["value"]) == ("approved", "four-eyes-1")
        assert worker.post("claim", {"envelopes": ["x"]}).status_code == 403
        removal = made(ann.delete(f"{ROOT}/revocations", params=target))
        assert [row.value for row in world.revocations()] == ["four-eyes-1"]
        _approve(world, removal)
        assert world.revocations() == []
        steps = ann.get(f"{ROOT}/audit", params={"token": proposal["token"]}).json()["rows"]
    added = world.audited("revocation.added")[-1]
    assert (added.actor, added.detail["token"]) == ("operator:ann", proposal["token"])
    approved = world.audited("proposal.approved")[-1]
    assert (approved.actor, approved.detail["proposer"], approved.detail["proposal"]) == (
        "operator:bob",
        "ann",
        removal["id"],
    )
    assert {"proposal.created", "revocation.added", "revocation.removed"} <= {row["event"] for row in steps}


def test_worker_and_token_revocations_wait(world: World) -> None:
    """So do the revocations of a worker and of another's token; drain, and the end of one's own token, do not."""
    world.worker("eu-west-1", "default", "four-eyes-2")
    victim = world.access_token("workers:read", owner="carl")
    with (
        world.operator(world.access_token(*ADMIN, "tokens:read", owner="ann")) as ann,
        world.operator(victim) as carl,
    ):
        assert ann.post(f"{ROOT}/workers/four-eyes-2/drain").json()["wanted"] == "draining"
        proposal = made(ann.post(f"{ROOT}/workers/four-eyes-2/revoke", json={"comment": "lost"}))
        _approve(world, proposal)
        (row,) = (row for row in ann.get(f"{ROOT}/workers").json()["workers"] if row["id"] == "four-eyes-2")
        assert row["wanted"] == "revoked"
        (token,) = (each for each in ann.get(f"{ROOT}/tokens").json()["tokens"] if each["owner"] == "carl")
        ending = made(ann.delete(f"{ROOT}/tokens/{token['id']}"))
        assert carl.get(f"{ROOT}/workers").status_code == 200
        _approve(world, ending)
        assert carl.get(f"{ROOT}/workers").status_code == 401


def test_lifetime_is_judged_when_it_is_proposed(world: World) -> None:
    """One that the proposer's token cannot give is refused at once; one that it could is collected later, and ends with it."""
    mine = world.access_token(*ADMIN, owner="ann", ttl=timedelta(hours=2))
    asked = {"kind": "join", "region": "eu-west-1", "ttl_seconds": 7_200}
    with world.operator(mine) as ann:
        refused = ann.post(f"{ROOT}/tokens", json={"token": asked | {"ttl_seconds": 10_000}})
        assert (refused.status_code, "a TTL of 2:46:40 is too long" in refused.json()["detail"]) == (
            400,
            True,
        )
        proposal = made(ann.post(f"{ROOT}/tokens", json={"token": asked}))
        _approve(world, proposal)
        with world.metadata.session() as session:
            row = session.get(TokenRow, proposal["token"])
            row.expires_at -= timedelta(hours=1)
            session.commit()
            ends = row.expires_at
        collected = decide(ann, proposal, "collect").json()
    assert abs(datetime.fromisoformat(collected["expires_at"]) - ends) < timedelta(seconds=5)


def test_token_is_collected_after_approval(world: World) -> None:
    """A token, of either kind, is made when its proposer collects it: no secret is stored, or shown to the approver."""
    access = {"kind": "access", "owner": "ci", "scopes": ["workers:read"]}
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        for asked in (access, {"kind": "join", "region": "eu-west-1", "uses": 1}):
            proposal = made(ann.post(f"{ROOT}/tokens", json={"token": asked}))
            done = _approve(world, proposal)
            assert done["result"] == {}
            collected = decide(ann, proposal, "collect").json()
            assert collected["parent"] == proposal["token"]
            if asked is access:
                assert collected["owner"] == "ann/ci"
                with world.operator(collected["token"]) as ci:
                    assert ci.get(f"{ROOT}/workers").status_code == 200
            else:
                world.worker(name="four-eyes-3").enrol(collected["token"])


def test_break_glass_revokes_at_once(world: World) -> None:
    """One person with ``break_glass:use`` revokes at once; that is an event, an audit row and an alarm's metric."""
    scopes = ("revocations:write", "workers:revoke", "break_glass:use", "metrics:read")
    world.worker("eu-west-1", "default", "four-eyes-4")
    body = {"kind": "certificate", "value": "ab" * 32, "reason": "stolen"}
    with world.operator(world.access_token(*scopes, owner="ann")) as ann:
        made(ann.post(f"{ROOT}/revocations", json=body))
        assert ann.post(f"{ROOT}/revocations", json=body | {"break_glass": True}).status_code == 200
        order = {"comment": "stolen", "break_glass": True}
        assert ann.post(f"{ROOT}/workers/four-eyes-4/revoke", json=order).json()["wanted"] == "revoked"
        shown = ann.get(f"{ROOT}/metrics").text
    assert 'airbridge_break_glass_total{action="revocation.add"} 1.0' in shown
    assert 'airbridge_break_glass_total{action="worker.revoke"} 1.0' in shown
    used = world.audited("break_glass.used")
    assert [(row.actor, row.detail["action"]) for row in used] == [
        ("operator:ann", "revocation.add"),
        ("operator:ann", "worker.revoke"),
    ]
    assert {"four-eyes-4", "ab" * 32} <= {row.value for row in world.revocations()}
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        for row in world.revocations():
            _approve(
                world, made(ann.delete(f"{ROOT}/revocations", params={"kind": row.kind, "value": row.value}))
            )


def test_policy_is_in_force_when_approved(world: World) -> None:
    """The gateway's file is not read; a proposed policy is in force once approved, and the next one needs two again."""
    assert not world.policy.judge(*READS).allowed
    with world.operator(world.access_token(*ADMIN, owner="ann")) as ann:
        wrong = ann.put(f"{ROOT}/policy", json={"text": "rule = 5"})
        assert (wrong.status_code, "the policy" in wrong.text) == (400, True)
        proposal = made(ann.put(f"{ROOT}/policy", json={"text": POLICY.format(name="one")}))
        stale = made(ann.put(f"{ROOT}/policy", json={"text": POLICY.format(name="stale")}))
        world.policy.reload()
        assert not world.policy.judge(*READS).allowed
        (listed,) = (
            row
            for row in ann.get(f"{ROOT}/proposals", params={"status": "proposed"}).json()["proposals"]
            if row["id"] == proposal["id"]
        )
        assert "characters" in listed["payload"]["text"]
        assert 'name = "one"' in ann.get(f"{ROOT}/proposals/{proposal['id']}").json()["payload"]["text"]
        _approve(world, proposal)
        world.policy.reload()
        assert world.policy.judge(*READS).allowed
        shown = ann.get(f"{ROOT}/policy").json()
        assert (shown["file"], shown["rules"][0]["name"]) == (f"proposal {proposal['id']}", "one")
        with world.operator(world.access_token(*ADMIN, owner="bob")) as bob:
            answer = decide(bob, stale)
            assert (answer.status_code, "propose it again" in answer.text) == (409, True)
        made(ann.put(f"{ROOT}/policy", json={"text": POLICY.format(name="two")}))
        world.policy.reload()
        assert ann.get(f"{ROOT}/policy").json()["rules"][0]["name"] == "one"
    assert world.audited("policy.changed")[-1].rule == "four_eyes"
    assert world.audited("policy.approved")[-1].actor == "operator:ann"


@pytest.mark.parametrize(
    ("owners", "asking"),
    [
        (("Mia",), "Mia"),
        (("mia", "MIA/ci", "Mia/ci/x"), "mIA"),
        (("Stra\u00dfe",), "STRASSE"),
        (("\u0130da",), "i\u0307da/ci"),
    ],
)
def test_open_proposals_of_a_person_are_bounded(world: World, owners: tuple[str, ...], asking: str) -> None:
    """The 51st open proposal of a person is refused, however the names of its tokens' owners are written."""
    asked = POOL | {"reason": "x"}
    with world.metadata.session() as session:
        rows = [
            proposals.create(
                session,
                action="revocation.add",
                payload=asked,
                owner=owners[number % len(owners)],
                token_id="t",
                address=None,
                ttl_seconds=3600.0,
            )
            for number in range(approvals.MOST_OPEN)
        ]
        # Of others, whose names begin like this one.
        for other in (f"{asking.partition('/')[0]}2", "_ia"):
            proposals.create(
                session, action="x", payload={}, owner=other, token_id="t", address=None, ttl_seconds=3600.0
            )
        session.commit()
        with world.operator(world.access_token(*ADMIN, owner=asking)) as operator:
            refused = operator.post(f"{ROOT}/revocations", json=asked)
            assert (refused.status_code, "has 50 open proposals" in refused.text) == (409, True)
            proposals.decide(session, rows[0], "refused", "operator:bob", "t")
            session.commit()
            made(operator.post(f"{ROOT}/revocations", json=asked))
        session.execute(update(ProposalRow).values(status="expired"))
        session.commit()


def test_refused_and_expired_proposals_end(world: World) -> None:
    """A proposal is refused by another operator or withdrawn by its own, and expires; none is approved afterwards."""
    from airbridge.executor.ledger import clock

    with (
        world.operator(world.access_token(*ADMIN, owner="ann")) as ann,
        world.operator(world.access_token(*ADMIN, owner="bob")) as bob,
    ):
        for client in (ann, bob):
            proposal = made(ann.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
            assert decide(client, proposal, "refuse").json()["proposal"]["status"] == "refused"
            assert decide(bob, proposal).status_code == 409
        late = made(ann.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}))
        with world.metadata.session() as session:
            session.get(ProposalRow, late["id"]).expires_at = clock.now(session)
            session.commit()
        answer = decide(bob, late)
        assert (answer.status_code, "is expired" in answer.text) == (409, True)
        approvals.expire()
        assert ann.get(f"{ROOT}/proposals/{late['id']}").json()["status"] == "expired"
        assert decide(bob, late).status_code == 409
        assert decide(bob, {"id": "none"}).status_code == 404
    assert world.audited("proposal.expired")[-1].detail["proposal"] == late["id"]
    assert world.audited("proposal.refused")[-1].actor == "operator:bob"


def test_nothing_waits_by_default(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without the setting actions take effect at once, and a policy is not changed over the network."""
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path_factory.mktemp("gateway")) as world,
        world.operator(world.access_token(*ADMIN, owner="ann")) as ann,
    ):
        assert ann.post(f"{ROOT}/revocations", json=POOL | {"reason": "x"}).status_code == 200
        asked = {"kind": "join", "region": "eu-west-1"}
        assert ann.post(f"{ROOT}/tokens", json={"token": asked}).status_code == 200
        refused = ann.put(f"{ROOT}/policy", json={"text": POLICY.format(name="one")})
        assert (refused.status_code, "change the file" in refused.text) == (409, True)
        assert not world.audited("break_glass.used")
    postgres.drop(name)


def test_emergency_actions_have_an_alarm() -> None:
    """The alarm knows every action that one operator may do alone."""
    assert {name for name, action in ACTIONS.items() if action.emergency} == set(metrics.BREAK_GLASS_ACTIONS)


def test_setting_names_actions() -> None:
    """A misspelt action is an error that lists the right ones."""

    def read(value: str) -> Settings:
        given = {"regions_file": "/r", "secrets_dir": "/s", "four_eyes": value}
        return Settings.read(given.get)

    assert read("tokens, policy").four_eyes == (FourEyes.TOKENS, FourEyes.POLICY)
    with pytest.raises(ConfigurationError, match="it must be 'revocation', 'policy', 'tokens'"):
        read("token")


def _as(world: World, owner: str, *words: str) -> Any:
    """Run a command with a token of this owner, as ``main`` does."""
    (world.directory / "ca.pem").write_text(world.ca.certificate_pem)
    token = world.directory / f"token-{owner}"
    if not token.exists():
        token.write_text(world.access_token(*ADMIN, "break_glass:use", owner=owner))
    connection = [
        "--url",
        world.operator_url,
        "--ca-file",
        str(world.directory / "ca.pem"),
        "--token-file",
        str(token),
    ]
    return CliRunner().invoke(app.build(), [*words, *connection])


def test_commands_propose_and_approve(world: World) -> None:
    """Every command of the kind says what waits; `approvals` lists, shows, approves, refuses and collects."""
    (world.directory / "next.toml").write_text(POLICY.format(name="by-command"))
    world.worker("eu-west-1", "default", "four-eyes-5")
    for words in (
        ("revocation", "add", "pool", "eu-west-1/gpu", "--reason", "by command"),
        ("worker", "revoke", "four-eyes-5", "--comment", "by command"),
        ("policy", "propose", "--file", str(world.directory / "next.toml")),
    ):
        waits = _as(world, "gina", *words)
        assert isinstance(waits.exception, Proposed)
        number = str(waits.exception).split()[1]
        assert f"airbridge approvals approve {number}" in str(waits.exception)
        assert number in _as(world, "hugo", "approvals", "list", "--status", "proposed", "--json").output
        assert "by" in _as(world, "hugo", "approvals", "show", number).output
        refused = _as(world, "gina", "approvals", "approve", number)
        assert isinstance(refused.exception, Refused)
        done = _as(world, "hugo", "approvals", "refuse" if words[0] == "worker" else "approve", number)
        assert done.exit_code == 0, done.output
    waits = _as(world, "gina", "token", "create", "--region", "eu-west-1")
    number = str(waits.exception).split()[1]
    assert _as(world, "hugo", "approvals", "approve", number).exit_code == 0
    assert "abj_" in _as(world, "gina", "approvals", "collect", number).output
    alone = _as(world, "gina", "worker", "revoke", "four-eyes-5", "--comment", "now", "--break-glass")
    assert alone.exit_code == 0, alone.output
    assert "approved" in _as(world, "hugo", "approvals", "list").output
