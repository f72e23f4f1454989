"""The audit trail of a running gateway: what lands in it, who may read it, and `airbridge audit` over the real wire."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.integration.gateway.world import World, finished, record
from typer.testing import CliRunner, Result

from airbridge.control_plane.cli import app
from airbridge.control_plane.gateway.audit.denials import Denial, Excess, write_rows

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def airbridge(world: World, tmp_path: Path) -> Any:
    """Runs `airbridge audit` as an auditor of this gateway."""
    logging.getLogger("httpx").setLevel(
        logging.WARNING
    )  # Airflow's logging, in this process, would write to stdout
    (tmp_path / "token").write_text(world.access_token("audit:read"))
    (tmp_path / "ca.crt").write_text(world.ca.certificate_pem)

    def run(*words: str) -> Result:
        options = ["--url", world.operator_url, "--token-file", str(tmp_path / "token")]
        return CliRunner().invoke(
            app.build(), ["audit", *words, *options, "--ca-file", str(tmp_path / "ca.crt")]
        )

    return run


def sealed(world: World) -> None:
    """Wait until the gateway has sealed what is there."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with world.metadata.session() as session:
            if not session.execute(text("SELECT count(*) FROM airbridge_audit_unsealed")).scalar():
                return
        time.sleep(0.05)
    raise AssertionError("not sealed")


def test_every_decision_is_audited(world: World, airbridge: Any) -> None:
    """Token, enrolment, claim, denied call, refused report, revocation: each with who, from where and by which rule."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    worker.exchange(record(grant, 1, "GET", "openapi.json"))
    worker.exchange(finished(grant, 1))
    world.worker().exchange(finished(grant, 2))
    bad = {"Authorization": "Bearer x", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
    assert worker.post("claim", {}, bad).status_code == 401
    with world.operator(world.access_token("workers:revoke")) as operator:
        operator.post(f"/operator/v1/workers/{worker.name.worker}/revoke", json={"comment": "stolen"})
    uri = worker.name.uri
    [granted] = world.audited("claim.granted", item_id=item)
    assert (granted.actor, granted.verdict, granted.rule) == (
        uri,
        "granted",
        "scope work:claim queue=eu-west-1/default",
    )
    [denied] = world.audited("call.denied", item_id=item)
    assert (denied.actor, denied.rule, denied.detail["path"]) == (uri, "calls: not listed", "openapi.json")
    [refused] = world.audited("exchange.refused", item_id=item)
    assert (refused.verdict, refused.rule) == ("denied", "lease: not_holder")
    [enrolled] = world.audited("worker.enrolled", worker_id=worker.name.worker)
    assert (enrolled.rule or "").startswith("join token ")
    [revoked] = world.audited("worker.revoked", worker_id=worker.name.worker)
    assert (revoked.actor, revoked.rule, revoked.detail["comment"]) == (
        "operator:test",
        "scope workers:revoke",
        "stolen",
    )
    [traced] = json.loads(airbridge("--trace", TRACE, "--json").stdout)
    assert (traced["event"], traced["actor"], traced["rule"]) == ("request.refused", uri, "access token")
    for row in (granted, denied, refused, enrolled, revoked):
        assert (row.address or "").startswith("127.0.0.1:"), row.event


def test_path_with_nul_is_audited(world: World) -> None:
    """A stranger's request whose path has a NUL is written down, as is the one after it."""
    before = len(world.audited("request.refused"))
    with world.operator(None) as stranger:
        assert stranger.delete("/operator/v1/tokens/%00").status_code == 401
        assert stranger.get("/operator/v1/workers").status_code == 401
    rows = world.audited("request.refused")[before:]
    assert [row.detail["request"] for row in rows] == [
        "DELETE /operator/v1/tokens/\ufffd",
        "GET /operator/v1/workers",
    ]


def test_unstorable_denial_loses_no_other(world: World) -> None:
    """Of a batch with a row that the database refuses the others are written, and the count of those beyond the rate."""
    good = Denial("request.refused", "batch:good", "127.0.0.1:1", None, None, {"request": "GET /x"})
    bad = replace(good, actor="batch:bad", trace_id="x" * 33)
    write_rows([good, bad, good], Excess(count=7, addresses={"127.0.0.1"}))
    assert len(world.audited("request.refused", actor="batch:good")) == 2
    assert not world.audited("request.refused", actor="batch:bad")
    assert world.audited("denials.counted")[-1].detail["count"] == 7


def test_rows_are_shown_by_filters(world: World, airbridge: Any) -> None:
    """`airbridge audit` narrows by actor and event, newest first, over pages, as a table and as JSON."""
    began = datetime.now(UTC).isoformat()
    for _ in range(3):
        world.worker()
    rows = json.loads(airbridge("--event", "worker.*", "--since", began, "--limit", "2", "--json").stdout)
    assert [row["event"] for row in rows] == ["worker.enrolled"] * 2
    assert rows[0]["id"] > rows[1]["id"]
    assert rows[0]["worker_id"] in airbridge("--worker", rows[0]["worker_id"]).stdout
    assert airbridge("--verdict", "maybe").exit_code != 0


def test_only_an_auditor_reads_the_trail(world: World) -> None:
    """Without the scope nothing is shown; one for a region shows that region's rows, and not the chain."""
    world.worker()
    with world.operator(world.access_token("workers:*")) as operator:
        assert operator.get("/operator/v1/audit").status_code == 403
        assert operator.get("/operator/v1/audit/chain").status_code == 403
    with world.operator(world.access_token("audit:read region=eu-*")) as operator:
        assert operator.get("/operator/v1/audit").status_code == 403
        assert operator.get("/operator/v1/audit", params={"region": "us-east-1"}).status_code == 403
        found = operator.get("/operator/v1/audit", params={"region": "eu-west-1"}).json()["rows"]
        assert {row["region"] for row in found} == {"eu-west-1"}
        assert operator.get("/operator/v1/audit/chain").status_code == 403
        assert (
            operator.get("/operator/v1/audit", params={"region": "eu-west-1", "item": "x"}).status_code == 400
        )


def test_verification_finds_what_was_tampered_with(world: World, airbridge: Any, tmp_path: Path) -> None:
    """Sound at first; then an altered row, and a missing end by the anchor that was kept: exit status 1 and the place."""
    world.worker()
    sealed(world)
    said = airbridge("--verify", "--json")
    assert (said.exit_code, json.loads(said.stdout)["sound"]) == (0, True), said.stdout
    (tmp_path / "kept.json").write_text(said.stdout)
    end = json.loads(said.stdout)["end"]["seq"]
    assert airbridge("--verify", "--anchor", str(tmp_path / "kept.json")).exit_code == 0
    with world.metadata.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(
            text("UPDATE airbridge_audit SET actor = 'x' WHERE id = (SELECT min(id) FROM airbridge_audit)")
        )
    altered = airbridge("--verify")
    assert (altered.exit_code, altered.stdout.split(":")[0]) == (1, "altered at link 1")
    with world.metadata.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(f"DELETE FROM airbridge_audit_seal WHERE seq >= {end}"))
    cut = airbridge("--verify", "--anchor", str(tmp_path / "kept.json"))
    assert f"truncated at link {end - 1}" in cut.stdout
