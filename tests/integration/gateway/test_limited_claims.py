"""Claims under limits at a running gateway: several workers at one time, and what becomes of an item that is held back."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import update
from tests.integration.gateway import seeding
from tests.integration.gateway.world import CATALOGUE, World, finished, running
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres

from airbridge.control_plane.read_model.diagnosis import causes
from airbridge.control_plane.read_model.diagnosis.cause import Code
from airbridge.control_plane.read_model.tasks import find
from airbridge.core.protocol import Disposition, RefusalReason
from airbridge.core.regions import Limit
from airbridge.executor.ledger.models import ItemState, WorkItemRow

LIMITS = tuple(
    Limit.model_validate(each)
    for each in tomllib.loads("""
    limit = [
      { name = "erp", max_running = 3 },
      { name = "slow", starts_per_minute = 2 },
      { name = "gpus", max_running = 1, pools = ["gpu@eu-west-1"] },
    ]
    """)["limit"]
)


@pytest.fixture(scope="module")
def world(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    name = postgres.create(postgres_template)
    catalogue = CATALOGUE.model_copy(update={"limits": LIMITS})
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path_factory.mktemp("gateway"), catalogue) as it,
    ):
        yield it
    postgres.drop(name)


def limited(world: World, count: int, limits: str | None, pool: str = "default") -> list[str]:
    found = world.items(count, pool=pool)
    with world.metadata.session() as session:
        session.execute(update(WorkItemRow).where(WorkItemRow.id.in_(found)).values(limits=limits))
        session.commit()
    return found


def test_workers_share_a_limit(world: World) -> None:
    """Four workers that claim twelve tasks of a limit at one time get three; the others go back to the outbox, with the reason."""
    ids = limited(world, 12, "erp")
    envelopes = [world.envelope(each) for each in ids]
    workers = [world.worker() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda n: workers[n].claim(*envelopes[n::4]), range(4)))
    assert sum(len(answer.grants) for answer in answers) == 3
    refusals = [refusal for answer in answers for refusal in answer.refusals]
    assert {(each.reason, each.disposition) for each in refusals} == {
        (RefusalReason.LIMITED, Disposition.DROP)
    }
    assert {each.detail for each in refusals} == {"limit erp: 3 of 3 tasks run"}
    rows = [world.row(each) for each in ids]
    assert sorted(row.state for row in rows) == [ItemState.CLAIMED] * 3 + [ItemState.PLACED] * 9


def test_place_is_free_again(world: World) -> None:
    """A repeated claim gets its grant again, and the end of a task lets the next one start."""
    first, second = limited(world, 2, None, pool="gpu")
    worker = world.worker(pool="gpu")
    held = world.envelope(first)
    granted = worker.claim(held)
    assert worker.claim(held).grants[0].epoch == granted.grants[0].epoch
    [refusal] = worker.claim(world.envelope(second)).refusals
    assert refusal.detail == "limit gpus: 1 of 1 tasks run"
    worker.exchange(finished(granted.grants[0], 1))
    assert worker.claim(world.envelope(second)).grants


def test_rate_sends_an_item_later(world: World) -> None:
    """A third start within the minute is refused, and is not sent before the minute has passed."""
    ids = limited(world, 3, "slow")
    answer = world.worker().claim(*(world.envelope(each) for each in ids))
    assert len(answer.grants) == 2
    [refusal] = answer.refusals
    assert refusal.detail == "limit slow: 2 of 2 starts within a minute"
    row = world.row(str(refusal.item_id))
    granted = world.row(str(answer.grants[0].item_id))
    assert timedelta(seconds=59) < row.not_before - granted.claimed_at < timedelta(seconds=62)


def test_cause_names_the_limit(world: World) -> None:
    """The cause of a task that a limit holds back is the limit, with what runs and what waits."""
    running = world.worker()
    running.try_beat()
    # However many of them run already: three do then.
    running.claim(*(world.envelope(each) for each in limited(world, 3, "erp")))
    [waiting] = limited(world, 1, "erp")
    row = world.row(waiting)
    platform = world.gateway._components.platform
    with world.metadata.session() as session:
        seeding.scheduler(session)
        task = find(session, row.dag_id, row.run_id, row.task_id, row.map_index)
        assert task is not None
        _, cause = causes.of_task(session, platform, task)
    assert cause.code is Code.LIMIT_REACHED
    assert "limit erp: 3 of 3 tasks run" in cause.sentence
    assert not cause.trouble
