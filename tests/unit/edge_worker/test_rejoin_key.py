"""The host's rejoin key: made once, kept, readable by its owner, and good for one request."""

from __future__ import annotations

from pathlib import Path

from airbridge.core.wire import rejoin
from airbridge.edge_worker.gateway_client.rejoin_key import RejoinKey

NAME = ("eu-west-1", "default", "edge-1")


def test_key_outlives_the_process(tmp_path: Path) -> None:
    """A second process proves the key of the first; the file is its owner's alone."""
    path = tmp_path / "state" / "rejoin.key"
    first, second = RejoinKey(path).prove(*NAME, "csr"), RejoinKey(path).prove(*NAME, "csr")
    assert first is not None
    assert second is not None
    assert first.public_key == second.public_key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["rejoin.key"]


def test_proof_is_for_one_request(tmp_path: Path) -> None:
    """A proof is not valid for another name, another certificate request, or under another key."""
    proof = RejoinKey(tmp_path / "a").prove(*NAME, "csr")
    other = RejoinKey(tmp_path / "b").prove(*NAME, "csr")
    assert proof is not None
    assert other is not None
    assert rejoin.is_valid(proof, *NAME, "csr")
    assert not rejoin.is_valid(proof, *NAME, "another")
    assert not rejoin.is_valid(proof, "eu-west-1", "default", "edge-2", "csr")
    assert not rejoin.is_valid(proof.model_copy(update={"public_key": other.public_key}), *NAME, "csr")
    assert not rejoin.is_valid(proof.model_copy(update={"signature": "no base64!"}), *NAME, "csr")


def test_damaged_key_is_replaced(tmp_path: Path) -> None:
    """A file that holds no key is replaced; where none can be kept there is no proof, and no error."""
    path = tmp_path / "rejoin.key"
    path.write_text("half a key")
    assert RejoinKey(path).prove(*NAME, "csr") is not None
    assert b"PRIVATE KEY" in path.read_bytes()
    assert RejoinKey(Path("/proc/nowhere/rejoin.key")).prove(*NAME, "csr") is None
