"""The policy over the wire: default deny, changed without a restart, each decision in the audit trail."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from tests.integration.gateway.world import Worker, World, record

from airbridge.core.protocol import Grant, RecordResult, RefusalReason
from airbridge.executor.ledger.models import Outcome

CLAIM = 'schema = 1\n[[rule]]\nname = "run"\ndags = ["*"]\nqueues.claim = ["*"]\n'
READ = CLAIM + '[[rule]]\nname = "read"\ndags = ["*"]\nregions = ["eu-*"]\nconnections.read = ["warehouse"]\n'


def connection(world: World, name: str) -> None:
    from airflow.models import Connection

    with world.metadata.session() as session:
        if session.query(Connection).filter(Connection.conn_id == name).first() is None:
            session.add(Connection(conn_id=name, conn_type="http", password="hunter2"))
        session.commit()


def ask(worker: Worker, grant: Grant, seq: int, method: str, path: str, body: Any = None) -> RecordResult:
    [result] = worker.exchange(record(grant, seq, method, path, body)).results
    return result


def message(result: RecordResult) -> str:
    text: str = json.loads(result.body or "{}")["detail"]["message"]
    return text


def test_new_rule_applies_without_restart(world: World) -> None:
    """A denial names the rule that would allow it; with the rule in the file it is allowed at once; both are audited."""
    connection(world, "warehouse")
    [item] = world.items()
    worker = world.worker()
    with world.under(CLAIM):
        grant = worker.grant(item)
        denied = ask(worker, grant, 1, "GET", "connections/warehouse")
        assert denied.status == 403
        assert 'connections.read = ["warehouse"]' in message(denied)
        assert "hunter2" not in (denied.body or "")
        with world.under(READ):
            allowed = ask(worker, grant, 1, "GET", "connections/warehouse")
            assert (allowed.status, json.loads(allowed.body or "")["password"]) == (200, "hunter2")
        # Reads have no idempotency key: the same number is judged anew under the old policy.
        assert ask(worker, grant, 1, "GET", "connections/warehouse").status == 403
    assert [row.rule for row in world.audited("call.denied", item_id=item)] == [
        "policy: no connections.read",
        "policy: no connections.read",
    ]
    [granted] = world.audited("call.granted", item_id=item)
    assert (granted.rule, granted.detail["name"], granted.actor) == (
        "policy rule read",
        "warehouse",
        worker.name.uri,
    )


def test_policy_changes_are_audited(world: World) -> None:
    """Added and removed rules are named, with the file's digests; a file that cannot be read is refused, once."""
    changed, refused = len(world.audited("policy.changed")), len(world.audited("policy.refused"))
    with world.under(READ):
        row = world.audited("policy.changed")[changed]
        assert (row.detail["rules_added"], row.detail["rules_removed"]) == (["read", "run"], ["local-mode"])
        assert row.detail["digest"] == world.policy.rules.digest if world.policy.rules else False
        with world.under(READ.replace("connections", "conections")):
            world.policy.reload()
            [wrong] = world.audited("policy.refused")[refused:]
            assert "conections: is not a key" in wrong.detail["why"]
            assert world.policy.rules
            assert [rule.name for rule in world.policy.rules.rules] == ["run", "read"]
    assert len(world.audited("policy.changed")) == changed + 2


def test_claim_without_rule_is_returned(world: World) -> None:
    """A claim that the policy denies is refused with the rule that would allow it; the task stays queued."""
    [item] = world.items()
    worker = world.worker()
    with world.under('schema = 1\n[[rule]]\nname = "others"\ndags = ["other"]\nqueues.claim = ["*"]\n'):
        [refusal] = worker.claim(world.envelope(item)).refusals
    assert (refusal.reason, refusal.disposition) == (RefusalReason.FORBIDDEN, "return")
    assert 'queues.claim = ["eu-west-1"]' in refusal.detail
    assert world.task(item).state == "queued"
    assert worker.grant(item)


def test_forbidden_asset_change_fails_task(world: World) -> None:
    """A final state that reports a change of a foreign asset is denied, and the task is failed, not left running."""
    [item] = world.items()
    worker = world.worker()
    with world.under(CLAIM):
        grant = worker.grant(item)
        outlet = {"name": "theirs", "uri": "s3://theirs", "type": "Asset"}
        end = datetime.now(UTC).isoformat()
        body = {"state": "success", "end_date": end, "task_outlets": [outlet]}
        result = ask(worker, grant, 1, "PATCH", "task-instances/{ti}/state", body)
        assert result.status == 403
        assert 'assets.change = ["theirs", "s3://theirs"]' in message(result)
    assert (world.task(item).state, world.row(item).outcome) == ("failed", Outcome.FAILED)
    assert ask(worker, grant, 1, "PATCH", "task-instances/{ti}/state", body).status == 403


def test_policy_endpoint_requires_scope(world: World) -> None:
    """The operators' API returns the policy's digest and rules to holders of policy:read only."""
    with world.operator(world.access_token("policy:read")) as operator:
        shown = operator.get("/operator/v1/policy").json()
        assert [rule["name"] for rule in shown["rules"]] == ["local-mode"]
    with world.operator(world.access_token("workers:read")) as operator:
        assert operator.get("/operator/v1/policy").status_code == 403
