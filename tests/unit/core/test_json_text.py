"""Text that PostgreSQL stores."""

from __future__ import annotations

import pytest

from airbridge.core import json_text


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        ("plain ä \U0001f600", "plain ä \U0001f600"),
        ("a\x00b\ud800c\udfff", "a\ufffdb\ufffdc\ufffd"),
        ({"k\x00": ["\x00", {"\udc00": 1}], "n": None}, {"k\ufffd": ["\ufffd", {"\ufffd": 1}], "n": None}),
        (1.5, 1.5),
    ],
)
def test_unstorable_characters_are_replaced(value: object, stored: object) -> None:
    """NUL and lone surrogates become U+FFFD, in keys and values at any depth; everything else stays."""
    assert json_text.storable(value) == stored
