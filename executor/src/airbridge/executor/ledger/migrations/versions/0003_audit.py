"""The audit trail and its hash chain, used join proofs, and which trust bundle a worker goes by.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from airflow.utils.sqlalchemy import UtcDateTime
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

UUID_TEXT = sa.String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
PROTECTED = ("airbridge_audit", "airbridge_audit_seal")


def upgrade() -> None:
    _create_audit()
    op.create_table(
        "airbridge_audit_seal",
        sa.Column("seq", BIG_ID, autoincrement=False, nullable=False),
        sa.Column("audit_id", BIG_ID, nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_airbridge_audit_seal")),
        sa.UniqueConstraint("audit_id", name=op.f("uq_airbridge_audit_seal_audit_id")),
    )
    op.create_table(
        "airbridge_audit_unsealed",
        sa.Column("audit_id", BIG_ID, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_airbridge_audit_unsealed")),
    )
    op.create_table(
        "airbridge_join_proof",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("worker_id", sa.String(length=63), nullable=False),
        sa.Column("used_at", UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_airbridge_join_proof")),
    )
    op.add_column("airbridge_worker", sa.Column("trust_version", sa.String(length=64), nullable=True))
    for statement in _protection(op.get_context().dialect.name):
        op.execute(statement)


def downgrade() -> None:
    op.drop_column("airbridge_worker", "trust_version")
    op.drop_table("airbridge_join_proof")
    op.drop_table("airbridge_audit_unsealed")
    op.drop_table("airbridge_audit_seal")
    op.drop_table("airbridge_audit")
    if op.get_context().dialect.name == "postgresql":
        op.execute("DROP FUNCTION IF EXISTS airbridge_audit_refuse()")
        op.execute("DROP FUNCTION IF EXISTS airbridge_audit_queue()")


def _create_audit() -> None:
    op.create_table(
        "airbridge_audit",
        sa.Column("id", BIG_ID, autoincrement=True, nullable=False),
        sa.Column("at", UtcDateTime(timezone=True), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=250), nullable=False),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("rule", sa.String(length=250), nullable=True),
        sa.Column("region", sa.String(length=63), nullable=True),
        sa.Column("worker_id", sa.String(length=63), nullable=True),
        sa.Column("item_id", UUID_TEXT, nullable=True),
        sa.Column("ti_id", UUID_TEXT, nullable=True),
        sa.Column("epoch", sa.Integer(), nullable=True),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_airbridge_audit")),
    )
    op.create_index("idx_airbridge_audit_at", "airbridge_audit", ["at"], unique=False)
    op.create_index("idx_airbridge_audit_event", "airbridge_audit", ["event", "at"], unique=False)
    op.create_index("idx_airbridge_audit_actor", "airbridge_audit", ["actor", "at"], unique=False)


def _protection(dialect: str) -> list[str]:
    """Return the triggers that refuse to change or remove rows, and that queue new ones for sealing."""
    if dialect == "postgresql":
        return _on_postgres()
    return _on_sqlite() if dialect == "sqlite" else []


def _on_postgres() -> list[str]:
    statements = [
        """
        CREATE OR REPLACE FUNCTION airbridge_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$
        """,
        """
        CREATE OR REPLACE FUNCTION airbridge_audit_queue() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO airbridge_audit_unsealed (audit_id) VALUES (NEW.id);
            RETURN NULL;
        END $$
        """,
        """
        CREATE TRIGGER airbridge_audit_queue AFTER INSERT ON airbridge_audit
            FOR EACH ROW EXECUTE FUNCTION airbridge_audit_queue()
        """,
    ]
    for table in PROTECTED:
        refuse = "EXECUTE FUNCTION airbridge_audit_refuse()"
        statements += [
            f"CREATE TRIGGER {table}_keep BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW {refuse}",
            f"CREATE TRIGGER {table}_keep_all BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {refuse}",
        ]
    return statements


def _on_sqlite() -> list[str]:
    statements = [
        """
        CREATE TRIGGER airbridge_audit_queue AFTER INSERT ON airbridge_audit BEGIN
            INSERT INTO airbridge_audit_unsealed (audit_id) VALUES (NEW.id);
        END
        """
    ]
    return statements + [
        f"CREATE TRIGGER {table}_keep_{operation.lower()} BEFORE {operation} ON {table} BEGIN "
        f"SELECT RAISE(ABORT, '{table} is append-only: {operation} is refused'); END"
        for table in PROTECTED
        for operation in ("UPDATE", "DELETE")
    ]
