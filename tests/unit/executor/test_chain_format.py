"""The hash chain's format: what was written down elsewhere must still fit after an upgrade."""

from __future__ import annotations

from tests.unit.executor.test_chain import entry

from airbridge.executor.ledger import chain
from airbridge.executor.ledger.chain import ChainLink


def test_start_is_stable() -> None:
    """A chain begins before link 1 with a hash of 64 zeros."""
    assert ChainLink(0, "0" * 64) == chain.START


def test_hash_is_stable() -> None:
    """The first link over a known row has a known hash."""
    link = chain.following(chain.START, entry(1))
    assert link == ChainLink(1, "3b599e5656383e36a0b0716659d357e89d1f3df2e7b8141ae48bd8a3d6055397")
