"""Failures of the database, or of Airflow's own code, in the middle of a request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text
from tests.integration.gateway.world import World, finished, lease, record, xcom, xcom_path

from airbridge.core.protocol import Disposition, Grant, LeaseRef, RefusalReason
from airbridge.executor.ledger import leases
from airbridge.executor.ledger.models import ItemState, Outcome

# SQLSTATE codes: deadlock_detected, which is worth a retry, and raise_exception, which is not.
DEADLOCK = "40P01"
CUSTOM = "P0001"


@contextmanager
def failing(world: World, table: str, condition: str, code: str) -> Iterator[None]:
    """Make Postgres refuse rows of `table` that meet `condition`, as this error."""
    with world.metadata.session() as session:
        session.execute(
            text(
                f"CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF {condition} THEN RAISE EXCEPTION 'test' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$"
            )
        )
        session.execute(
            text(
                f"CREATE TRIGGER fail BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION fail()"
            )
        )
        session.commit()
    try:
        yield
    finally:
        with world.metadata.session() as session:
            session.execute(text(f"DROP TRIGGER fail ON {table}"))
            session.commit()


def kept_xcom(world: World, grant: Grant, key: str) -> bool:
    with world.metadata.session() as session:
        query = text("SELECT count(*) FROM xcom WHERE key = :key AND dag_id = :dag")
        return bool(session.execute(query, {"key": key, "dag": grant.ti["dag_id"]}).scalar_one())


def test_deadlock_affects_one_item(world: World) -> None:
    """The unlucky item is answered 503 throughout and applied in full when sent again; its neighbour is committed."""
    unlucky, lucky = world.items(2)
    worker = world.worker()
    one, two = worker.grant(unlucky), worker.grant(lucky)
    records = (xcom(one, 1, "before", "1"), xcom(one, 2, "poison", "1"), finished(one, 3))
    with failing(world, "xcom", "NEW.key = 'poison'", DEADLOCK):
        answer = worker.exchange(*records, finished(two, 1))
    assert [result.status for result in answer.results] == [503, 503, 503, 204]
    assert not kept_xcom(world, one, "before")
    assert (world.task(unlucky).state, world.task(lucky).state) == ("running", "success")
    assert [result.status for result in worker.exchange(*records).results] == [201, 201, 204]
    assert kept_xcom(world, one, "before")


def test_impossible_call_fails_alone(world: World) -> None:
    """A record that Airflow cannot apply is answered 500 for good; the records around it are committed."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    records = (xcom(grant, 1, "before", "1"), xcom(grant, 2, "poison", "1"), xcom(grant, 3, "after", "1"))
    with failing(world, "xcom", "NEW.key = 'poison'", CUSTOM):
        first = worker.exchange(*records)
    assert [result.status for result in first.results] == [201, 500, 201]
    assert first == worker.exchange(*records)
    assert [kept_xcom(world, grant, key) for key in ("before", "poison", "after")] == [True, False, True]
    assert world.row(item).state == ItemState.CLAIMED


def test_impossible_state_fails_attempt(world: World) -> None:
    """The attempt is settled as failed, so that Airflow's own retries take over and nothing hangs."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    with failing(world, "task_instance", "NEW.state = 'success'", CUSTOM):
        [result] = worker.exchange(finished(grant, 1)).results
    assert result.status == 500
    assert (world.row(item).outcome, world.task(item).state) == (Outcome.FAILED, "running")


def test_unstartable_task_is_failed_alone(world: World) -> None:
    """One item that Airflow cannot start does not spoil the batch, and does not come back for ever."""
    bad, good = world.items(2)
    worker = world.worker()
    poison = f"NEW.state = 'running' AND NEW.id = '{world.row(bad).ti_id}'"
    with failing(world, "task_instance", poison, CUSTOM):
        answer = worker.claim(world.envelope(bad), world.envelope(good))
    [refusal] = answer.refusals
    assert (refusal.reason, refusal.disposition) == (RefusalReason.NOT_STARTABLE, Disposition.DROP)
    assert [UUID(good)] == [grant.item_id for grant in answer.grants]
    assert (world.row(bad).outcome, world.task(bad).state) == (Outcome.FAILED, "queued")


def test_deadlocked_claim_gets_503(world: World) -> None:
    """The whole request may be sent again; the messages were not deleted."""
    first, second = world.items(2)
    worker = world.worker()
    envelopes = (world.envelope(first), world.envelope(second))
    with failing(world, "task_instance", f"NEW.id = '{world.row(second).ti_id}'", DEADLOCK):
        response = worker.post("claim", {"envelopes": envelopes})
    assert (response.status_code, response.json()["reason"]) == (503, "overloaded")
    assert response.headers["retry-after"] == "1"
    assert (world.task(first).state, world.row(first).state) == ("queued", ItemState.PLACED)
    assert len(worker.claim(*envelopes).grants) == 2


def test_errors_hide_internals(world: World) -> None:
    """A broken database shows as a short problem, without SQL, names of files or stack traces."""
    worker = world.worker()
    with failing(world, "airbridge_worker", f"NEW.id = '{worker.name.worker}'", CUSTOM):
        body = {"sent_at": "2026-01-01T00:00:00Z", "slots_total": 1, "slots_used": 0}
        versions = {"airbridge": "0.1.0", "airflow": "3.0.4", "task_sdk": "1.0.4", "python": "3.11.1"}
        response = worker.post("heartbeat", {**body, "versions": versions})
    assert response.status_code == 500
    assert response.json() == {
        "status": 500,
        "reason": "internal",
        "detail": "an error of the gateway; see its log",
    }


def test_concurrent_claims_have_one_winner(world: World) -> None:
    """Of eight workers that claim the same message at once, one gets the grant and seven are refused."""
    [item] = world.items()
    message = world.envelope(item)
    workers = [world.worker() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda worker: worker.claim(message), workers))
    assert sum(len(answer.grants) for answer in answers) == 1
    reasons = [refusal.reason for answer in answers for refusal in answer.refusals]
    assert reasons == [RefusalReason.ALREADY_CLAIMED] * 7
    assert world.row(item).epoch == 1


def test_concurrent_retries_apply_once(world: World) -> None:
    """A retry that overtakes its first attempt changes nothing: both get the same answers."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    worker.beat(lease(grant))
    records = (xcom(grant, 1, "k", "1"), finished(grant, 2))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: worker.exchange(*records), range(4)))
    assert [answers[0]] * 4 == answers
    assert [result.status for result in answers[0].results] == [201, 204]


def test_backlog_leaves_threads_free(world: World) -> None:
    """While three long requests get nowhere (their rows are locked), another worker claims a task and reports it."""
    slow, quick = world.worker(), world.worker()
    backlog = world.items(24)
    grants = [slow.grant(item) for item in backlog]
    [item] = world.items()
    parts = [grants[0:8], grants[8:16], grants[16:24]]
    with ThreadPoolExecutor(3) as pool, world.metadata.session() as session:
        leases.lock(session, backlog)
        stuck = [pool.submit(slow.exchange, *(finished(each, 1) for each in part)) for part in parts]
        time.sleep(0.5)  # all three have arrived
        [result] = quick.exchange(finished(quick.grant(item), 1)).results
        assert result.status == 204
        assert not any(each.done() for each in stuck)
        session.rollback()
        answers = [each.result(60).results for each in stuck]
    assert [result.status for results in answers for result in results] == [204] * 24


def test_denied_write_is_idempotent(world: World) -> None:
    """A denial is an answer, with an idempotency key of its own; the task's next write goes through."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    denied = record(grant, 1, "POST", "xcoms/other/run/task/key", "1")
    first = worker.exchange(denied, xcom(grant, 2, "mine", "1"))
    assert [result.status for result in first.results] == [403, 201]
    assert first.results[:1] == worker.exchange(denied).results
    assert len([e for e in world.events("call.denied") if e.item_id == item]) == 1


def test_reads_see_earlier_writes(world: World) -> None:
    """Within a request, a read sees the writes before it and not those after it."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    path = xcom_path(grant, "n")
    answer = worker.exchange(
        xcom(grant, 1, "n", "1"),
        record(grant, 2, "GET", path),
        xcom(grant, 2, "n", "2"),
        record(grant, 3, "GET", path),
    )
    values = [json.loads(result.body or "{}").get("value") for result in answer.results]
    assert values == [None, "1", None, "2"]


def test_releasing_twice_is_releasing_once(world: World) -> None:
    """The answer to a release may be lost: the second one changes nothing."""
    [item] = world.items()
    worker = world.worker()
    held = lease(worker.grant(item))
    worker.release(held)
    epoch = world.row(item).epoch
    worker.release(held, LeaseRef(item_id=UUID(int=3), epoch=1))
    assert (world.row(item).epoch, world.row(item).state) == (epoch, ItemState.PLACED)


def test_failed_loop_is_restarted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A background loop of the gateway that fails with an error it does not expect runs again within seconds."""
    calls: list[float] = []

    async def reload(*_: Any) -> None:
        calls.append(time.monotonic())
        if len(calls) == 1:
            raise RuntimeError("unexpected")

    monkeypatch.setattr(world.gateway.key_reloader, "reload", reload)
    until = time.monotonic() + 15
    while len(calls) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert len(calls) >= 2
