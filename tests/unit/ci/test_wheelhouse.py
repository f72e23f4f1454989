"""Wheels of one image that serve another: by hash alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

from airbridge.ci.images.wheelhouse import share


def requirement(name: str, content: bytes) -> str:
    return (
        f"{name}==1 ; sys_platform == 'linux' \\\n    --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"
    )


def test_wheels_are_shared_by_hash(tmp_path: Path) -> None:
    """A wheel that a requirement names by hash is linked; one of the same name with other content is not, and stays required."""
    (tmp_path / "wheels").mkdir()
    there = [tmp_path / "a-1-py3-none-any.whl", tmp_path / "b-1-py3-none-any.whl"]
    for file in there:
        file.write_bytes(b"content of a")
    there[1].write_bytes(b"another content")
    wanted = requirement("a", b"content of a") + requirement("b", b"content of b")
    missing = share(wanted, there, tmp_path / "wheels")
    assert missing == requirement("b", b"content of b")
    assert [file.name for file in (tmp_path / "wheels").iterdir()] == ["a-1-py3-none-any.whl"]
