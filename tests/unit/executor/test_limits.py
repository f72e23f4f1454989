"""Limits: what a claim lets start, over generated starts and ends; and the catalogue's entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.executor.catalogues import TOML, catalogue

from airbridge.core import near
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError, PlacementError
from airbridge.core.regions import Limit
from airbridge.executor.ledger.sharing.limits import MINUTE, Admission, Limits, Room, _Counts
from airbridge.executor.placement.placement import Placement
from airbridge.executor.settings import Settings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EUROPE, GPU = ("eu-west-1", "default"), ("eu-west-1", "gpu")


@dataclass
class Item:
    """What the limits read of a row."""

    limits: str | None = "erp"
    region: str = "eu-west-1"
    pool: str = "default"
    kind: str = "task"


def row(limits: str | None = "erp") -> Any:
    """Return a row that the limits can read."""
    return Item(limits)


@dataclass
class Written:
    """Session that keeps what is added."""

    rows: list[Any] = field(default_factory=list)

    def add(self, row: Any) -> None:
        self.rows.append(row)


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60),
)
def test_no_schedule_exceeds_a_limit(most: int, rate: int, steps: Sequence[tuple[float, bool]]) -> None:
    """Never run more than the limit lets, never do more start within any minute; and what is held back starts at the time given."""
    limits = Limits([Limit(name="erp", max_running=most, starts_per_minute=rate)])
    now, running = NOW, 0
    starts: list[datetime] = []
    for passed, ends in steps:
        now += timedelta(seconds=passed)
        running -= bool(ends and running)

        def admission(at: datetime, running: int = running) -> Admission:
            recent = [each for each in starts if each > at - MINUTE]
            return Admission(limits, Written(), {"erp": _Counts(running=running, starts=recent)}, at)

        held_back = admission(now).held_back(row())
        if held_back is None:
            running += 1
            starts.append(now)
        elif running < most:
            assert held_back[1] > now
            assert admission(held_back[1]).held_back(row()) is None
            assert admission(held_back[1] - timedelta(microseconds=1)).held_back(row()) is not None
        assert running <= most
    for start in starts:
        assert sum(start <= other < start + MINUTE for other in starts) <= rate


@given(st.integers(1, 20), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_outbox_sends_what_may_start(most: int, running: int, fresh: int, stale: int) -> None:
    """The outbox sends exactly as many as the running and the messages leave; old messages of another pool leave room."""
    limits = Limits([Limit(name="erp", max_running=most)])
    counts = _Counts(running=running, fresh=fresh)
    counts.stale[GPU] = stale
    room = Room(limits, {"erp": counts}, {EUROPE: [None, "erp"], GPU: ["erp"]})
    assert dict(room.classes(EUROPE))[None] is None
    free = max(0, most - running - fresh)
    assert dict(room.classes(EUROPE)).get("erp", 0) == free
    assert dict(room.classes(GPU)).get("erp", 0) == max(0, free - stale)
    assert sum(room.admits(EUROPE, row()) for _ in range(most + 1)) == free


def test_limit_of_a_pool_counts_every_task() -> None:
    """A task counts towards the limits that it names and those of its pool."""
    limits = Limits(
        [Limit(name="erp", max_running=1), Limit(name="gpus", max_running=1, pools=("gpu@eu-west-1",))]
    )
    assert [each.name for each in limits.of(None, GPU)] == ["gpus"]
    assert [each.name for each in limits.of("erp other", GPU)] == ["erp", "gpus"]
    assert limits.of(None, EUROPE) == []


def test_both_limits_must_let_a_task_start() -> None:
    """A task of two limits is held back by the one that is full, with its name."""
    limits = Limits([Limit(name="crm", max_running=5), Limit(name="erp", max_running=1)])
    written = Written()
    admission = Admission(limits, written, {"crm": _Counts(), "erp": _Counts()}, NOW)
    assert admission.held_back(row("crm erp")) is None
    admission.started(row("crm erp"))
    assert admission.held_back(row("crm erp")) == ("limit erp: 1 of 1 tasks run", NOW)
    assert admission.held_back(row("crm")) is None
    assert written.rows == []  # none has a rate


def test_hint_names_a_limit(tmp_path: Path) -> None:
    """`near(limits=...)` reaches the decision, each name once; a name that the catalogue does not have is refused with those it has."""
    settings = Settings(regions_file=tmp_path / "unread.toml", secrets_dir=tmp_path)
    placement = Placement(Catalogue.parse(TOML + '[[limit]]\nname = "erp"\nmax_running = 2\n'), settings)
    assert placement.decide(None, near(limits=["erp", "erp"]), {}).limits == ("erp",)
    with pytest.raises(PlacementError, match="there is no limit 'epr'; did you mean 'erp'\\? limits: erp"):
        placement.decide(None, near(limits=["epr"]), {})
    with pytest.raises(ValueError, match=r"must be a list; write \['erp'\]"):
        near(limits="erp")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ('name = "erp"', "limit 'erp' limits nothing; give it max_running, starts_per_minute or both"),
        ('name = "erp"\nmax_running = 1\npools = ["gpu@mars"]', "limit 'erp', pools 'gpu@mars': there is no region 'mars'"),
        ('name = "erp"\nmax_running = 0', "max_running"),
        ('name = "erp"\nmax_running = 1\n[[limit]]\nname = "erp"\nmax_running = 2', "limit 'erp' is there twice"),
    ],
)  # fmt: skip
def test_wrong_limit_is_refused(entry: str, problem: str) -> None:
    """A limit that limits nothing, names no pool that exists or is there twice is refused, by its name."""
    with pytest.raises(ConfigurationError, match=problem):
        Catalogue.parse(f"{TOML}\n[[limit]]\n{entry}\n")


def test_no_limits_count_nothing() -> None:
    """Without limits in the catalogue nothing is asked of the database."""
    limits = Limits(catalogue().limits)
    assert not limits
    assert limits.room(None, NOW) is None
    assert limits.loads(None, NOW) == ()
    assert limits.admission(None, [row("erp")], NOW).held_back(row("erp")) is None
