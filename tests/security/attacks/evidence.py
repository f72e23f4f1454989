"""Attacks on the audit trail by the owner of the database: finding 14."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sqlalchemy import text
from tests.integration.gateway.world import World
from tests.security.registry import attack

from airbridge.control_plane.gateway.audit import sealer
from airbridge.control_plane.gateway.audit.anchors import Anchors, FileSink
from airbridge.executor.ledger import audit
from airbridge.executor.ledger.chain import ChainLink, Checker

_TABLES = ("airbridge_audit_seal", "airbridge_audit")


def _write(world: World, count: int) -> None:
    with world.metadata.session() as session:
        for number in range(count):
            audit.record(session, "policy.changed", "changed", "mallory", number=number)
        session.commit()
    sealer.seal_once()


def _as_owner(world: World, statements: Iterable[str]) -> None:
    with world.metadata.session() as session:
        # Triggers make both tables append-only, but their owner can disable them.
        for table in _TABLES:
            session.execute(text(f"ALTER TABLE {table} DISABLE TRIGGER USER"))
        for statement in statements:
            session.execute(text(statement))
        for table in _TABLES:
            session.execute(text(f"ALTER TABLE {table} ENABLE TRIGGER USER"))
        session.commit()


def _cut(world: World, count: int) -> None:
    """Cut the last rows of the trail, with their links."""
    last = f"SELECT seq FROM airbridge_audit_seal ORDER BY seq DESC LIMIT {count}"
    rows = f"SELECT audit_id FROM airbridge_audit_seal WHERE seq IN ({last})"
    with world.metadata.session() as session:
        ids = ", ".join(str(each) for each in session.scalars(text(rows))) or "0"
    _as_owner(
        world,
        [
            f"DELETE FROM airbridge_audit_seal WHERE audit_id IN ({ids})",
            f"DELETE FROM airbridge_audit WHERE id IN ({ids})",
        ],
    )


def _verify(world: World, anchors: Iterable[ChainLink]) -> list[str]:
    checker = Checker(list(anchors))
    with world.metadata.session() as session:
        while part := audit.sealed(session, checker.end.seq, 1_000):
            checker.read(part)
    return [f"{each.fault}: {each.detail}" for each in checker.finish()]


@attack(14)
def trail_cut_short(world: World, folder: Path) -> None:
    """The last rows are cut, with their links: without an anchor the chain is sound; with one, what is missing is named."""
    faults: list[str] = []
    anchors = Anchors([FileSink(folder / "anchors.jsonl")], faults.append)
    _write(world, 5)
    anchors.turn()
    assert faults == []
    [kept] = anchors.read()
    _cut(world, 3)
    # A shortened chain is valid in itself: only an anchor reveals that its end is missing.
    assert _verify(world, []) == []
    [found] = _verify(world, [ChainLink(kept.seq, kept.hash)])
    assert f"links {kept.seq - 2} to {kept.seq} are missing" in found
    Anchors([FileSink(folder / "anchors.jsonl")], faults.append).turn()
    assert faults == ["truncated"]


@attack(14)
def trail_made_anew(world: World, folder: Path) -> None:
    """The end is cut and replaced by as many rows: the links at the anchor's place differ, and no new anchor hides it."""
    faults: list[str] = []
    sink = FileSink(folder / "anchors.jsonl")
    anchors = Anchors([sink], faults.append)
    _write(world, 4)
    anchors.turn()
    before = anchors.read()
    _cut(world, 3)
    _write(world, 6)
    anchors.turn()
    assert faults == ["rewritten"]
    assert sink.read() == before
    assert any(
        "rewritten" in each for each in _verify(world, [ChainLink(each.seq, each.hash) for each in before])
    )


EVIDENCE_ATTACKS: tuple[Callable[[World, Path], None], ...] = (trail_cut_short, trail_made_anew)
