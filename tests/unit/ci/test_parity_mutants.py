"""A sample of the mutants of parity; all of them in `make parity-mutants`."""

from __future__ import annotations

from tests.parity_mutants.__main__ import run


def test_sampled_mutants_are_found() -> None:
    """All that a hostile stranger would plant is found, and of the generated mutants a sample; survivors have reasons."""
    planted, _, unexplained = run(60, seed=17)
    assert planted > 150
    assert [] == [f"{each.path}:{each.line}: {each.kind}: {each.shown}" for each in unexplained]
