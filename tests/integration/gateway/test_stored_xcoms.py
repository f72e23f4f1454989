"""XComs in a region's bucket, at the gateway: which references it takes, which URLs it grants, and what the sweep deletes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import quote, unquote

import pytest
from tests.integration.gateway.test_policy import CLAIM, ask, message
from tests.integration.gateway.world import Worker, World, record

from airbridge.control_plane.gateway.background.xcom_sweep import XComSweep
from airbridge.control_plane.gateway.work.stored_xcoms import StoredXComs
from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.protocol import Grant
from airbridge.core.residency import xcoms
from airbridge.core.residency.xcoms import Form, ObjectName, StoredXCom
from airbridge.executor.ledger.models import WorkItemRow

SHA = "ab" * 32
REGIONS = (
    CLAIM + '[[rule]]\nname = "abroad"\ndags = ["*"]\nregions = ["us-*"]\nxcoms.from_regions = ["eu-*"]\n'
)


def reference(grant: Grant, region: str = "eu-west-1", **changes: Any) -> StoredXCom:
    fields = {
        "dag_id": grant.ti["dag_id"],
        "run_id": grant.ti["run_id"],
        "item_id": grant.item_id,
        "sha256": SHA,
    }
    return StoredXCom(region, ObjectName.of(**{**fields, **changes}), 100_000, Form.JSON)


def path_of(grant: Grant, key: str = "return_value") -> str:
    return f"xcoms/{grant.ti['dag_id']}/{grant.ti['run_id']}/{grant.ti['task_id']}/{key}"


def push(worker: Worker, grant: Grant, seq: int, value: Any, key: str = "return_value") -> Any:
    return ask(worker, grant, seq, "POST", path_of(grant, key), value)


def fetch(worker: Worker, grant: Grant, seq: int, stored: StoredXCom) -> Any:
    return ask(worker, grant, seq, "GET", f"stored-xcoms/{stored.region}/{quote(stored.object.key)}")


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that sign URLs; nothing is sent to AWS."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")


@pytest.fixture
def granted(world: World) -> Iterator[tuple[Worker, Grant]]:
    [item] = world.items()
    worker = world.worker()
    with world.under(CLAIM):
        yield worker, worker.grant(item)


def test_own_reference_is_stored(granted: tuple[Worker, Grant]) -> None:
    """A task's reference to its own object is an XCom like any other, and is read back as it was."""
    worker, grant = granted
    value = reference(grant).encode()
    assert push(worker, grant, 1, value).status == 201
    read = ask(worker, grant, 2, "GET", path_of(grant))
    assert json.loads(read.body or "")["value"] == value


@pytest.mark.parametrize(
    "changes",
    [
        {"run_id": "another"},
        {"dag_id": "another"},
        {"item_id": "00000000-0000-0000-0000-000000000000"},
        {"region": "us-east-1"},
    ],
    ids=["run", "dag", "item", "region"],
)
def test_forged_reference_is_denied(granted: tuple[Worker, Grant], changes: dict[str, Any]) -> None:
    """A reference to what another run, DAG, work item or region wrote is refused, with the rule named."""
    worker, grant = granted
    refused = push(worker, grant, 1, reference(grant, **changes).encode())
    assert refused.status == 403
    assert "this attempt of the task did not write" in message(refused)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("object", "xcoms/../logs/run/1.log"),
        ("object", "logs/run/1.log"),
        ("object", "xcoms/dag=%2E%2E/run=" + "0" * 32 + "/" + "0" * 36 + "/" + SHA),
        ("sha256", "cd" * 32),
        ("size", -1),
        ("size", 6 * 1024**3),
        ("form", "pickle"),
        ("region", 7),
    ],
)
def test_malformed_reference_is_denied(granted: tuple[Worker, Grant], field: str, value: Any) -> None:
    """No other key, digest, size or form is taken for a reference, nor another spelling of a key."""
    worker, grant = granted
    forged = reference(grant).encode()
    forged["__data__"][field] = value
    assert push(worker, grant, 1, forged).status == 403


def test_reference_within_value_is_denied(granted: tuple[Worker, Grant]) -> None:
    """A reference stands alone: hidden in a list or a dict it would be decoded unseen."""
    worker, grant = granted
    for seq, value in enumerate(([reference(grant).encode()], {"a": {"b": reference(grant).encode()}}), 1):
        refused = push(worker, grant, seq, value)
        assert (refused.status, "stands alone" in message(refused)) == (403, True)


def test_large_inline_value_is_denied(granted: tuple[Worker, Grant]) -> None:
    """A value above the region's bound does not pass the gateway, whatever sends it; one within it does."""
    worker, grant = granted
    assert push(worker, grant, 1, "x" * 1000).status == 201
    refused = push(worker, grant, 2, "x" * 2000)
    assert (refused.status, "keeps those of more than 1024" in message(refused)) == (403, True)


def test_skip_key_is_no_loophole(granted: tuple[Worker, Grant]) -> None:
    """The scheduler's list of skipped tasks may be long; under its key nothing else may."""
    worker, grant = granted
    assert push(worker, grant, 1, {"skipped": ["a" * 200] * 20}, xcoms.SKIP_KEY).status == 201
    assert push(worker, grant, 2, {"skipped": ["a b" * 70] * 20}, xcoms.SKIP_KEY).status == 403
    assert push(worker, grant, 3, {"data": ["a" * 200] * 20}, xcoms.SKIP_KEY).status == 403


def test_read_from_other_region_needs_rule(world: World) -> None:
    """Another region's stored XCom is read by a rule that names the region, with an audit entry; without it is refused."""
    [here, there] = world.items(2), world.items(1, region="us-east-1")
    home, abroad = world.worker(), world.worker("us-east-1")
    with world.under(CLAIM):
        grant, other = home.grant(here[0]), abroad.grant(there[0])
        # Of the reader's own DAG: nothing but the region is foreign.
        stored = reference(grant, dag_id=other.ti["dag_id"], run_id=other.ti["run_id"])
        denied = fetch(abroad, other, 1, stored)
        assert denied.status == 403
        assert 'xcoms.from_regions = ["eu-west-1"]' in message(denied)
    with world.under(REGIONS):
        allowed = fetch(abroad, other, 1, stored)
        found = json.loads(allowed.body or "")
        assert allowed.status == 200, allowed
        assert (allowed.status, found["region"], found["object"]) == (200, "eu-west-1", stored.object.key)
        assert stored.object.key in unquote(found["url"])
        # The bucket's own endpoint: the global one redirects, which a signature does not survive.
        assert "//eu-logs.s3.eu-west-1.amazonaws.com/" in found["url"]
        assert "X-Amz-Expires=300" in found["url"]
    assert world.audited("call.denied", item_id=there[0])[-1].rule == "policy: no xcoms.from_regions"
    assert world.audited("call.granted", item_id=there[0])[-1].rule == "policy rule abroad"


def test_read_of_other_dag_needs_rule(granted: tuple[Worker, Grant]) -> None:
    """A reference that a user typed into another DAG's XCom grants nothing: the object's own DAG is judged."""
    worker, grant = granted
    denied = fetch(worker, grant, 1, reference(grant, dag_id="payroll"))
    assert (denied.status, "may not read the XComs of DAG 'payroll'" in message(denied)) == (403, True)


@pytest.mark.parametrize("key", ["logs/x", "xcoms/../logs/x", "xcoms/dag=a/../../logs/x"])
def test_only_stored_xcoms_are_granted(granted: tuple[Worker, Grant], key: str) -> None:
    """No URL is granted to anything else in the bucket."""
    worker, grant = granted
    assert ask(worker, grant, 1, "GET", f"stored-xcoms/eu-west-1/{key}").status == 403


def test_sweep_deletes_what_no_row_refers_to(world: World) -> None:
    """An object stays while its row does, and while its work item may still write one; then it is deleted."""
    kept_item, running_item = world.items(2)
    worker = world.worker()
    store = MemoryStore("eu-logs")
    stored = StoredXComs.of(world.gateway._components.catalogue)
    stored.make = lambda _region: store
    sweep = XComSweep(stored, grace=timedelta(0))
    with world.under(CLAIM):
        grant, running = worker.grant(kept_item), worker.grant(running_item)
        kept, orphan, unsettled = (
            reference(grant),
            reference(grant, sha256="cd" * 32),
            reference(running, sha256="ef" * 32),
        )
        for each in (kept, orphan, unsettled):
            store.put(each.object.key, b"value")
        store.put("logs/run/1.log", b"log")
        assert push(worker, grant, 1, kept.encode()).status == 201
        worker.exchange(record(grant, 2, "PATCH", f"task-instances/{grant.ti_id}/state", _success()))
        assert sweep.turn("eu-west-1") == [orphan.object.key]
        with world.metadata.session() as session:
            from airflow.models.xcom import XComModel

            session.query(XComModel).filter(XComModel.dag_id == grant.ti["dag_id"]).delete()
            session.commit()
        assert sweep.turn("eu-west-1") == [kept.object.key]
    assert sorted(info.key for info in store.list("")) == sorted(["logs/run/1.log", unsettled.object.key])


def _success() -> dict[str, Any]:
    from datetime import UTC, datetime

    return {"state": "success", "end_date": datetime.now(UTC).isoformat()}


# --- what moved -------------------------------------------------------------------------------------


def moves(world: World, item: Any) -> list[tuple[str, Any, Any, int]]:
    """Events of an item's XComs: name, source, size and what crossed."""
    found = [*world.events("xcom.written"), *world.events("xcom.read")]
    return [
        (each.event, each.detail.get("stored"), each.detail["bytes"], each.moved_bytes)
        for each in sorted(found, key=lambda each: each.id)
        if str(each.item_id) == str(item)
    ]


def test_small_xcom_moves_with_its_call(granted: tuple[Worker, Grant], world: World) -> None:
    """A value in the database crosses when it is written and when it is read; what is refused moves nothing."""
    worker, grant = granted
    assert push(worker, grant, 1, "value").status == 201
    assert ask(worker, grant, 2, "GET", path_of(grant)).status == 200
    assert ask(worker, grant, 3, "GET", path_of(grant, "another")).status == 404
    written, read = moves(world, grant.item_id)
    assert written == ("xcom.written", None, len(json.dumps("value")), len(json.dumps("value")))
    assert (read[0], read[1]) == ("xcom.read", None)
    assert read[3] == read[2] > len("value")


def test_stored_xcom_moves_when_another_region_reads_it(world: World) -> None:
    """A value in a bucket counts when it is written and when another region fetches it, and not when its own region reads it."""
    mine, theirs = world.items(2)
    with world.metadata.session() as session:
        session.get(WorkItemRow, theirs).region = "us-east-1"
        session.commit()
    here, abroad = world.worker(), world.worker("us-east-1")
    with world.under(REGIONS):
        written, read = here.grant(mine), abroad.grant(theirs)
        stored = reference(written)
        assert push(here, written, 1, stored.encode()).status == 201
        assert ask(here, written, 2, "GET", path_of(written)).status == 200
        assert fetch(abroad, read, 1, stored).status == 200
    assert moves(world, mine) == [
        ("xcom.written", "eu-west-1", 100_000, 100_000),
        ("xcom.read", "eu-west-1", 100_000, 0),
    ]
    assert moves(world, theirs) == [("xcom.read", "eu-west-1", 100_000, 100_000)]
    [event] = [each for each in world.events("xcom.read") if str(each.item_id) == theirs]
    assert (event.detail["of_task"], event.detail["key"]) == (written.ti["task_id"], "return_value")


def test_read_of_mapped_task_has_plain_key(granted: tuple[Worker, Grant], world: World) -> None:
    """A read by position, or of a slice, is of the key that was written; which XComs it is of stands beside it."""
    worker, grant = granted
    assert push(worker, grant, 1, "value").status == 201
    assert ask(worker, grant, 2, "GET", path_of(grant) + "/item/-1").status == 200
    [result] = worker.exchange(
        record(grant, 3, "GET", path_of(grant) + "/slice", query="start=0&stop=2")
    ).results
    assert (result.status, json.loads(result.body or "")) == (200, ["value"])
    found = [each.detail for each in world.events("xcom.read") if str(each.item_id) == str(grant.item_id)]
    assert [each["key"] for each in found] == ["return_value"] * 2
    assert [each["of_task"] for each in found] == [grant.ti["task_id"]] * 2
    assert found[0]["of_position"] == -1
    assert found[1]["of_slice"] == [0, 2, None]
