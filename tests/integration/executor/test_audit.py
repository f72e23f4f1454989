"""The audit trail in the database: only added to, sealed in batches, and every kind of tampering found."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import exc, select, text
from tests.support.airflow_home import Metadata

from airbridge.executor.ledger import audit, chain
from airbridge.executor.ledger.chain import ChainFinding, ChainLink, Fault
from airbridge.executor.ledger.models import AuditRow


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


def seal(metadata: Metadata, limit: int = 1_000) -> ChainLink | None:
    with metadata.session() as session:
        link = audit.seal(session, limit)
        session.commit()
    return link


def findings(metadata: Metadata, *anchors: ChainLink) -> list[ChainFinding]:
    checker = chain.Checker(anchors)
    with metadata.session() as session:
        # Pages of three, so that the checks cross their borders.
        while part := audit.sealed(session, checker.end.seq, 3):
            checker.read(part)
    return checker.finish()


def faults(metadata: Metadata, *anchors: ChainLink) -> list[tuple[Fault, int]]:
    return [(found.fault, found.seq) for found in findings(metadata, *anchors)]


def tamper(metadata: Metadata, *statements: str) -> None:
    """Change rows as an owner of the tables could: with the triggers disabled."""
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
    """The database itself refuses to change or remove audit rows and links, with an error."""
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


def test_texts_are_cut(sqlite_metadata: Metadata) -> None:
    """Actor and rule are cut to what their columns take, a detail's text to `LONGEST` characters."""
    with sqlite_metadata.session() as session:
        row = audit.record(
            session, "e", "denied", "a" * 251, rule="r" * 251, why="w" * (audit.LONGEST + 1), empty=None
        )
        session.flush()
        assert (row.actor, row.rule) == ("a" * 250, "r" * 250)
        assert row.detail == {"why": "w" * audit.LONGEST}


def test_rolled_back_transaction_leaves_no_row(metadata: Metadata) -> None:
    """An audit row is committed or rolled back with the transaction that it describes; the chain has no gap
    for it.
    """
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
            # Each link hashes the one before it: the swap of 2 and 3 also breaks 4.
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
    """Altered, deleted and reordered rows, and a missing end, are found although the triggers were disabled."""
    write(metadata, 6)
    anchor = seal(metadata)
    assert anchor is not None
    assert faults(metadata, anchor) == []
    tamper(metadata, *statements)
    assert faults(metadata, anchor) == expected


def test_unsealed_row_is_counted(metadata: Metadata) -> None:
    """Taking a row out of the sealer's queue does not hide it: it stays without a seal, and its age is
    reported.
    """
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


def test_concurrent_sealers_make_one_chain(postgres_metadata: Metadata) -> None:
    """Gateways that write and seal side by side leave every row sealed once, in one sound chain."""

    def work(_number: int) -> None:
        for _ in range(5):
            write(postgres_metadata, 4)
            seal(postgres_metadata, limit=3)

    together(4, work)
    while seal(postgres_metadata):
        pass
    with postgres_metadata.session() as session:
        # Four threads of five rounds of four rows.
        assert (audit.head(session).seq, audit.waiting(session).count) == (80, 0)
    assert findings(postgres_metadata) == []


def test_rows_are_filtered(metadata: Metadata) -> None:
    """Filters narrow by event, actor (with ``*``), verdict and region; newest come first, in pages."""
    write(metadata, 5, region="eu-west-1")
    with metadata.session() as session:
        audit.record(session, "token.created", "changed", "operator:ann_x", rule="tokens:create")
        session.commit()
        found = audit.find(session, audit.Filter(actor="worker-*", region="eu-west-1"), 3)
        assert [row.actor for row in found] == ["worker-4", "worker-3", "worker-2"]
        assert [(each.id, each.actor, each.detail) for each in audit.entries(found)] == [
            (row.id, row.actor, row.detail) for row in found
        ]
        more = audit.find(session, audit.Filter(event="call.*", verdict="denied"), 9, before=found[-1].id)
        assert [row.actor for row in more] == ["worker-1", "worker-0"]
        assert [row.rule for row in audit.find(session, audit.Filter(actor="operator:ann_*"), 9)] == [
            "tokens:create"
        ]
        # An underscore is no wildcard, though LIKE has it as one, and a dot is none either.
        assert audit.find(session, audit.Filter(actor="operator:ann.*"), 9) == []


def test_rows_are_found_by_token(metadata: Metadata) -> None:
    """Rows that name a token, its revoker or its maker are found, however many tokens are asked for."""
    with metadata.session() as session:
        named: list[dict[str, str]] = [
            {"token": "a1"},
            {"token": "b2", "by_token": "a1"},
            {"parent": "a1", "token": "c3"},
        ]
        for detail in [*named, {"token": "d4"}, {"other": "a1"}, {}]:
            audit.record(session, "e", "changed", "operator:ann", **detail)
        session.flush()
        found = audit.find(session, audit.Filter(tokens=("a1",)), 10)
        assert [row.detail for row in reversed(found)] == named
        many = (*(f"{number:x}" for number in range(0x1000, 0x1100)), "d4")
        assert [row.detail for row in audit.find(session, audit.Filter(tokens=many), 10)] == [{"token": "d4"}]


@pytest.mark.parametrize("count", [1, 250])
def test_tokens_are_found_by_index(postgres_metadata: Metadata, count: int) -> None:
    """On Postgres a search by token reads the indexes, not the whole trail."""
    with postgres_metadata.session() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        session.execute(text("SET LOCAL enable_indexscan = off"))
        tokens = tuple(f"{number:x}" for number in range(count))
        (condition,) = audit._conditions(audit.Filter(tokens=tokens), None)
        query = (
            select(AuditRow.id)
            .where(condition)
            .compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        )
        plan = "\n".join(row[0] for row in session.execute(text("EXPLAIN " + str(query).replace(":", "\\:"))))
    for key in audit.TOKEN_KEYS:
        assert f"on idx_airbridge_audit_{key}" in plan, plan
