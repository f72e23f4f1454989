"""The audit trail in the database: only added to, sealed in batches, and every kind of tampering found."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import exc, text
from tests.support.airflow_home import Metadata

from airbridge.executor.ledger import audit, chain
from airbridge.executor.ledger.chain import Fault, Finding, Link


def write(metadata: Metadata, count: int, **more: Any) -> None:
    with metadata.session() as session:
        for number in range(count):
            audit.record(
                session,
                "call.denied",
                "denied",
                f"worker-{number}",
                address="127.0.0.1:9",
                number=number,
                **more,
            )
        session.commit()


def seal(metadata: Metadata, limit: int = 1_000) -> Link | None:
    with metadata.session() as session:
        link = audit.seal(session, limit)
        session.commit()
    return link


def findings(metadata: Metadata, *anchors: Link) -> list[Finding]:
    checker = chain.Checker(anchors)
    with metadata.session() as session:
        while part := audit.sealed(session, checker.end.seq, 3):
            checker.read(part)
    return checker.finish()


def faults(metadata: Metadata, *anchors: Link) -> list[tuple[Fault, int]]:
    return [(found.fault, found.seq) for found in findings(metadata, *anchors)]


def tamper(metadata: Metadata, *statements: str) -> None:
    """Change rows as somebody would who owns the tables: with the triggers switched off."""
    with metadata.engine.begin() as connection:
        if metadata.engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            for table in ("airbridge_audit", "airbridge_audit_seal"):
                for operation in ("update", "delete"):
                    connection.execute(text(f"DROP TRIGGER {table}_keep_{operation}"))
        for statement in statements:
            connection.execute(text(statement))


@pytest.mark.parametrize("table", ["airbridge_audit", "airbridge_audit_seal"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET {}", "DELETE FROM {}", "TRUNCATE {}"])
def test_rows_can_only_be_added(metadata: Metadata, table: str, statement: str) -> None:
    """The database itself refuses to change or remove audit rows and links, and says so."""
    if statement.startswith("TRUNCATE") and metadata.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    write(metadata, 2)
    seal(metadata)
    change = "actor = 'x'" if table == "airbridge_audit" else "hash = 'x'"
    with (
        pytest.raises((exc.DBAPIError, exc.IntegrityError), match=f"{table} is append-only"),
        metadata.engine.begin() as connection,
    ):
        connection.execute(text(statement.format(table, change)))


def test_rows_are_sealed_in_batches(metadata: Metadata) -> None:
    """Each call continues the chain where the last one ended, until nothing waits; the chain is then sound."""
    write(metadata, 5)
    with metadata.session() as session:
        assert audit.waiting(session).count == 5
    links = [seal(metadata, limit=2) for _ in range(4)]
    assert [link.seq if link else None for link in links] == [2, 4, 5, None]
    with metadata.session() as session:
        assert (audit.waiting(session).count, audit.head(session)) == (0, links[2])
    assert findings(metadata, *(link for link in links if link)) == []


def test_what_is_rolled_back_leaves_no_row(metadata: Metadata) -> None:
    """A row lives and dies with the transaction of what it tells of; the chain has no gap for it."""
    with metadata.session() as session:
        audit.record(session, "claim.granted", "granted", "nobody")
        session.rollback()
    write(metadata, 1)
    link = seal(metadata)
    assert link is not None
    assert (link.seq, findings(metadata)) == (1, [])


SECOND = "(SELECT audit_id FROM airbridge_audit_seal WHERE seq = 2)"


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([f"UPDATE airbridge_audit SET actor = 'somebody-else' WHERE id = {SECOND}"], [(Fault.ALTERED, 2)]),
        ([f"UPDATE airbridge_audit SET detail = '{{}}' WHERE id = {SECOND}"], [(Fault.ALTERED, 2)]),
        (
            [f"UPDATE airbridge_audit SET at = '2020-01-01 00:00:00.000000' WHERE id = {SECOND}"],
            [(Fault.ALTERED, 2)],
        ),
        ([f"DELETE FROM airbridge_audit WHERE id = {SECOND}"], [(Fault.ROW_DELETED, 2)]),
        (
            [
                f"DELETE FROM airbridge_audit WHERE id = {SECOND}",
                "DELETE FROM airbridge_audit_seal WHERE seq = 2",
            ],
            [(Fault.LINK_DELETED, 2)],
        ),
        (
            [
                "UPDATE airbridge_audit_seal SET seq = 99 WHERE seq = 2",
                "UPDATE airbridge_audit_seal SET seq = 2 WHERE seq = 3",
                "UPDATE airbridge_audit_seal SET seq = 3 WHERE seq = 99",
            ],
            [(Fault.ALTERED, 2), (Fault.ALTERED, 3), (Fault.ALTERED, 4)],
        ),
        (
            [
                "DELETE FROM airbridge_audit WHERE id IN (SELECT audit_id FROM airbridge_audit_seal WHERE seq > 4)",
                "DELETE FROM airbridge_audit_seal WHERE seq > 4",
            ],
            [(Fault.TRUNCATED, 4)],
        ),
    ],
    ids=["actor", "detail", "time", "row", "row-and-link", "order", "end"],
)
def test_tampering_is_found(
    metadata: Metadata, statements: list[str], expected: list[tuple[Fault, int]]
) -> None:
    """Altered, deleted and reordered rows, and a missing end, whoever switched the database's protection off."""
    write(metadata, 6)
    anchor = seal(metadata)
    assert anchor is not None
    assert faults(metadata, anchor) == []
    tamper(metadata, *statements)
    assert faults(metadata, anchor) == expected


def test_a_row_kept_from_the_sealer_is_counted(metadata: Metadata) -> None:
    """Taking a row out of the sealer's queue does not hide it: it stays without a seal, and its age is told."""
    write(metadata, 1)
    with metadata.engine.begin() as connection:
        connection.execute(text("DELETE FROM airbridge_audit_unsealed"))
    assert seal(metadata) is None
    with metadata.session() as session:
        assert audit.waiting(session).count == 1


def together(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_sealers_at_the_same_time_make_one_chain(postgres_metadata: Metadata) -> None:
    """Gateways that write and seal side by side leave every row sealed once, in one sound chain."""

    def work(_number: int) -> None:
        for _ in range(5):
            write(postgres_metadata, 4)
            seal(postgres_metadata, limit=3)

    together(4, work)
    while seal(postgres_metadata):
        pass
    with postgres_metadata.session() as session:
        assert (audit.head(session).seq, audit.waiting(session).count) == (80, 0)
    assert findings(postgres_metadata) == []


def test_rows_are_found_by_what_they_say(metadata: Metadata) -> None:
    """Filters narrow by event, actor (with ``*``), verdict and region; newest come first, in pages."""
    write(metadata, 5, region="eu-west-1")
    with metadata.session() as session:
        audit.record(session, "token.created", "changed", "operator:ann_x", rule="tokens:create")
        session.commit()
        found = audit.find(session, audit.Filter(actor="worker-*", region="eu-west-1"), 3)
        assert [row.actor for row in found] == ["worker-4", "worker-3", "worker-2"]
        more = audit.find(session, audit.Filter(event="call.*", verdict="denied"), 9, before=found[-1].id)
        assert [row.actor for row in more] == ["worker-1", "worker-0"]
        assert [row.rule for row in audit.find(session, audit.Filter(actor="operator:ann_*"), 9)] == [
            "tokens:create"
        ]
        assert audit.find(session, audit.Filter(actor="operator:ann.*"), 9) == []
