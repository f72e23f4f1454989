"""Mutants without a promise on triggers or stored XComs: the checker finds each, and nothing in their histories without them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.chaos.arena import Arena, open_arena
from tests.chaos.checker import check
from tests.chaos.mutations import REGIONAL, Mutation, found_by
from tests.chaos.schedule import Schedule

pytestmark = [pytest.mark.slow("make proof-sovereign"), pytest.mark.timeout(600)]
HISTORIES = {mutation.schedule.name: mutation.schedule for mutation in REGIONAL}


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    """A platform with two workers behind links."""
    with open_arena() as made:
        yield made


@pytest.mark.parametrize("schedule", HISTORIES.values(), ids=HISTORIES)
def test_history_with_all_promises(arena: Arena, schedule: Schedule) -> None:
    """A gateway and workers that lack nothing make no violation of it."""
    assert check(arena.play(schedule)) == []


@pytest.mark.parametrize("mutation", REGIONAL, ids=lambda mutation: mutation.name)
def test_mutant_is_found(arena: Arena, mutation: Mutation) -> None:
    """The checker finds what the mutant lacks, by its kind."""
    assert mutation.finds in {violation.kind for violation in found_by(arena, mutation)}
