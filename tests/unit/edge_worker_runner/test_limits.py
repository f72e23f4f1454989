"""Limits of a task: its slots' share, or what it asks for."""

from __future__ import annotations

from uuid import uuid4

import pytest

from airbridge.core.protocol import BundleRef, Grant, Resources, StartedAs
from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner.limits.limits import MIB, Limits, Share

SHARE = Share(slots=8, limits=Limits(memory=2048 * MIB, cpus=0.5, processes=100, disk=1024 * MIB))


def grant(slots: int = 1, memory: int | None = None, cpus: float | None = None) -> Grant:
    ti_id = uuid4()
    return Grant(
        item_id=uuid4(),
        ti_id=ti_id,
        epoch=1,
        lease_seconds=60,
        slots=slots,
        resources=Resources(memory=memory, cpus=cpus),
        ti={"id": str(ti_id)},
        ti_context={},
        start_date="2025-08-10T12:00:00Z",  # type: ignore[arg-type] # as in a message
        started_as=StartedAs(hostname="edge-7", unixname="airbridge", pid=1),
        dag_rel_path="dag.py",
        bundle=BundleRef(name="dags", version=f"sha256:{'0' * 64}"),
        log_path="x.log",
    )


@pytest.mark.parametrize(
    ("asked", "slots", "limits"),
    [
        ({}, 1, Limits(2048 * MIB, 0.5, 100, 1024 * MIB)),
        ({"slots": 3}, 3, Limits(3 * 2048 * MIB, 1.5, 300, 3 * 1024 * MIB)),
        ({"memory": 4096 * MIB}, 2, Limits(4096 * MIB, 1.0, 200, 2 * 1024 * MIB)),
        ({"memory": 4097 * MIB}, 3, Limits(4097 * MIB, 1.5, 300, 3 * 1024 * MIB)),
        ({"cpus": 2}, 4, Limits(4 * 2048 * MIB, 2, 400, 4 * 1024 * MIB)),
        ({"slots": 4, "memory": 64 * MIB}, 4, Limits(64 * MIB, 2, 400, 4 * 1024 * MIB)),
        ({"slots": 20}, 8, Limits(8 * 2048 * MIB, 4, 800, 8 * 1024 * MIB)),
    ],
)
def test_task_has_what_it_asks_for(asked: dict[str, int], slots: int, limits: Limits) -> None:
    """What a task does not ask for is its slots' share; it takes as many slots as have what it asks for."""
    assert slots == SHARE.slots_for(grant(**asked))
    assert limits == SHARE.limits_for(grant(**asked))


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (
            {"memory": 20_000 * MIB},
            "memory of 20000 MiB, and this worker has 16384 MiB: 8 slots of 2048 MiB each",
        ),
        ({"cpus": 5}, "cpus of 5, and this worker has 4: 8 slots of 0.5 each"),
    ],
)
def test_what_no_slots_have_is_refused(asked: dict[str, int], why: str) -> None:
    """The reason has the numbers."""
    with pytest.raises(RunnerError, match=why):
        SHARE.limits_for(grant(**asked))


def test_worker_without_shares_gives_what_is_asked_for() -> None:
    """Without shares a task takes the slots of its work item, and is limited to what it asks for, if to anything."""
    share = Share(slots=8)
    assert not share.limits_for(grant()).in_cgroup
    assert Limits(memory=MIB) == share.limits_for(grant(memory=MIB))
    assert 1 == share.slots_for(grant(memory=2**40))
