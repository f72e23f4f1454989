"""The tokens that a local platform makes for itself."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.support.airflow_home import Metadata

from airbridge.control_plane.local.gateway import register_tokens, write_tokens
from airbridge.control_plane.local.layout import StateDir
from airbridge.executor.ledger.identity import tokens

WORKERS = {"eu-1": ("eu-west-1", "default")}


def test_registered_tokens_are_accepted(metadata: Metadata, tmp_path: Path) -> None:
    """The operator's token is an access token, the worker's joins its own pool; registering again changes nothing."""
    directory = StateDir(tmp_path)
    write_tokens(directory, WORKERS)
    operator, join = directory.operator_token_file.read_text(), directory.join_token_file("eu-1").read_text()
    with metadata.session() as session, session.begin():
        assert tokens.find_access(session, operator) is None
        register_tokens(session, directory, WORKERS)
        register_tokens(session, directory, WORKERS)
    with metadata.session() as session, session.begin():
        assert len(tokens.list_all(session)) == 2
        assert tokens.find_access(session, operator) is not None
        row = tokens.redeem_join(session, join)
        assert row is not None
        assert row.scopes == {"region": "eu-west-1", "pool": "default"}
        assert tokens.redeem_join(session, join) is not None


def test_token_files_are_private(tmp_path: Path) -> None:
    """Each start writes new tokens, readable by their owner only; each worker has one of its own."""
    directory = StateDir(tmp_path)
    write_tokens(directory, ["a", "b"])
    first = directory.join_token_file("a").read_text()
    assert first != directory.join_token_file("b").read_text()
    assert stat.S_IMODE(directory.join_token_file("a").stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.operator_token_file.stat().st_mode) == 0o600
    write_tokens(directory, ["a", "b"])
    assert directory.join_token_file("a").read_text() != first
