"""The hash chain: what it finds, without a database."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from airbridge.executor.ledger import chain
from airbridge.executor.ledger.chain import ChainFinding, ChainLink, Checker, Entry, Fault, Sealed

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def entry(number: int) -> Entry:
    return Entry(
        id=number,
        at=NOW + timedelta(seconds=number),
        event="claim.granted",
        verdict="granted",
        actor=f"worker-{number}",
        address="127.0.0.1:1",
        rule=None,
        region="eu-west-1",
        worker_id=f"worker-{number}",
        item_id=None,
        ti_id=None,
        epoch=1,
        trace_id=None,
        detail={"why": "ä", "n": number},
    )


def chained(count: int = 6) -> list[Sealed]:
    entries = [entry(number) for number in range(1, count + 1)]
    return [Sealed(link, e.id, e) for link, e in zip(chain.links(chain.START, entries), entries, strict=True)]


def findings(rows: list[Sealed], *anchors: ChainLink) -> list[tuple[Fault, int]]:
    checker = Checker(anchors)
    checker.read(rows)
    return [(found.fault, found.seq) for found in checker.finish()]


def test_an_untouched_chain_is_sound() -> None:
    """Nothing is found, in one piece or in parts, with every link as an anchor."""
    rows = chained()
    assert findings(rows, *(row.link for row in rows)) == []
    checker = Checker()
    for row in rows:
        checker.read([row])
    assert (checker.finish(), checker.end) == ([], rows[-1].link)


@pytest.mark.parametrize("field", ["event", "actor", "verdict", "address", "at", "detail", "rule", "epoch"])
def test_an_altered_row_is_found(field: str) -> None:
    """A change of any field is found at that row, and at no other."""
    rows = chained()
    value = NOW if field == "at" else {"n": 0} if field == "detail" else 9 if field == "epoch" else "x"
    assert rows[2].entry is not None
    rows[2] = replace(rows[2], entry=replace(rows[2].entry, **{field: value}))
    assert findings(rows) == [(Fault.ALTERED, 3)]


def test_a_deleted_row_is_found() -> None:
    """A deleted row is found, with its link or without it."""
    rows = chained()
    assert findings([*rows[:2], replace(rows[2], entry=None), *rows[3:]]) == [(Fault.ROW_DELETED, 3)]
    assert findings([*rows[:2], *rows[3:]]) == [(Fault.LINK_DELETED, 3)]


def test_rows_that_changed_places_are_found() -> None:
    """Two rows under each other's links are both found."""
    rows = chained()
    swapped = [
        *rows[:2],
        replace(rows[2], audit_id=rows[3].audit_id, entry=rows[3].entry),
        replace(rows[3], audit_id=rows[2].audit_id, entry=rows[2].entry),
        *rows[4:],
    ]
    assert findings(swapped) == [(Fault.ALTERED, 3), (Fault.ALTERED, 4)]


def test_renumbered_links_are_found() -> None:
    """Removing a row and closing the gap in the numbers breaks the chain where the row was."""
    rows = chained()
    closed = [*rows[:2], *(replace(row, link=ChainLink(row.link.seq - 1, row.link.hash)) for row in rows[3:])]
    assert (Fault.ALTERED, 3) in findings(closed)


def test_anchor_finds_truncated_chain() -> None:
    """A chain without its last rows still verifies alone; a link that was recorded elsewhere shows the
    truncation.
    """
    rows = chained()
    assert findings(rows[:4]) == []
    assert findings(rows[:4], rows[5].link) == [(Fault.TRUNCATED, 4)]


def test_anchor_finds_rewritten_chain() -> None:
    """A writer of both tables can forge a chain that verifies, but not one with the links that were
    recorded elsewhere.
    """
    rows = chained()
    forged = [entry(number) for number in (1, 2, 9, 4, 5, 6)]
    anew = [Sealed(link, e.id, e) for link, e in zip(chain.links(chain.START, forged), forged, strict=True)]
    assert findings(anew) == []
    assert findings(anew, rows[1].link) == []
    assert findings(anew, rows[1].link, rows[4].link) == [(Fault.REWRITTEN, 5)]


def test_an_entry_survives_json() -> None:
    """An entry exported as JSON can be verified elsewhere."""
    assert Entry.from_json(entry(1).to_json()) == entry(1)
    assert ChainFinding(Fault.ALTERED, 1, "x").fault == "altered"
