"""Audit by token: everything done with an operator's token and with the tokens made under it."""

from __future__ import annotations

from typing import Any

import httpx
from tests.integration.gateway.world import World
from typer.testing import CliRunner

from airbridge.control_plane.cli import app

ROOT = "/operator/v1"


def _make(operator: httpx.Client, **asked: Any) -> dict[str, Any]:
    answer = operator.post(f"{ROOT}/tokens", json={"token": asked})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def _access(operator: httpx.Client, owner: str, *scopes: str) -> dict[str, Any]:
    return _make(operator, kind="access", owner=owner, scopes=scopes)


def _rows(reader: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    answer = reader.get(f"{ROOT}/audit", params=query)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["rows"]
    return rows


def test_token_and_children_are_followed(world: World) -> None:
    """A token's rows hold what it and its children did: commands, tokens, a join, a denial; none of another token's."""
    with (
        world.operator(world.access_token("tokens:*", "workers:*", "revocations:*")) as root,
        world.operator(world.access_token("audit:read")) as reader,
    ):
        mine = _access(root, "ci", "tokens:*", "workers:drain", "revocations:write")
        other = _access(root, "other", "revocations:write")
        with world.operator(mine["token"]) as ci, world.operator(other["token"]) as stranger:
            child = _access(ci, "nightly", "workers:drain")
            joined = _make(ci, kind="join", region="eu-west-1")
            worker = world.worker(name="of-the-child")
            fresh = world.worker(name="joined-by-it")
            fresh.enrol(joined["token"])
            worker.beat()
            with world.operator(child["token"]) as nightly:
                assert nightly.post(f"{ROOT}/workers/of-the-child/drain").status_code == 200
                assert nightly.post(f"{ROOT}/workers/of-the-child/revoke").status_code == 403
            for client, value in ((ci, "eu-west-1/mine"), (stranger, "eu-west-1/theirs")):
                asked = {"kind": "pool", "value": value, "reason": "test"}
                assert client.post(f"{ROOT}/revocations", json=asked).status_code == 200
            assert ci.delete(f"{ROOT}/tokens/{child['id']}").status_code == 200
            with world.operator(child["token"]) as nightly:
                assert nightly.get(f"{ROOT}/workers").status_code == 401
        rows = _rows(reader, token=mine["id"])
        assert [row["event"] for row in reversed(rows)] == [
            "token.created",
            "token.created",
            "token.created",
            "worker.enrolled",
            "worker.drain_wanted",
            "request.refused",
            "revocation.added",
            "token.revoked",
            # The use of a token that was revoked.
            "request.refused",
        ]
        assert "eu-west-1/theirs" not in str(rows)
        alone = _rows(reader, token=mine["id"], children="false")
        assert "worker.drain_wanted" not in {row["event"] for row in alone}
        assert {"revocation.added", "token.revoked"} <= {row["event"] for row in alone}
        assert {row["event"] for row in _rows(reader, token=joined["id"])} == {
            "token.created",
            "worker.enrolled",
        }
        assert len(_rows(reader, token=mine["id"], event="token.*")) == 4


def test_unknown_token_is_named(world: World) -> None:
    """A token that does not exist is a 404, a malformed id a 400: an empty trail would look like an innocent token."""
    with world.operator(world.access_token("audit:read")) as reader:
        for token, status in (("0123456789abcdef", 404), ("abo_secret", 400), ("' OR 1=1 --", 400)):
            assert reader.get(f"{ROOT}/audit", params={"token": token}).status_code == status


def test_command_shows_a_token(world: World) -> None:
    """``airbridge audit --token`` asks for it, and ``--no-children`` leaves its children out."""
    with world.operator(world.access_token("tokens:*", "workers:*")) as root:
        mine = _access(root, "cli", "tokens:*", "workers:drain")
        with world.operator(mine["token"]) as operator:
            child = _access(operator, "below", "workers:drain")
            with world.operator(child["token"]) as below:
                assert below.post(f"{ROOT}/workers/none-such/drain").status_code == 404
    (world.directory / "ca.pem").write_text(world.ca.certificate_pem)
    (world.directory / "reader").write_text(world.access_token("audit:read"))
    connection = ["--url", world.operator_url, "--ca-file", str(world.directory / "ca.pem")]
    connection += ["--token-file", str(world.directory / "reader")]
    shown = CliRunner().invoke(app.build(), ["audit", "--token", mine["id"], "--json", *connection])
    assert shown.exit_code == 0, shown.output
    assert "request.refused" in shown.output
    alone = CliRunner().invoke(
        app.build(), ["audit", "--token", mine["id"], "--no-children", "--json", *connection]
    )
    assert alone.exit_code == 0, alone.output
    assert "request.refused" not in alone.output
