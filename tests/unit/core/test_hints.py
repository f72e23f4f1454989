"""Amounts of memory as people write them."""

from __future__ import annotations

import pytest

from airbridge.core.hints import memory_text, parse_bytes


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4GiB", 4 * 2**30),
        ("512 MiB", 2**29),
        ("1.5GiB", 3 * 2**29),
        ("2 GB", 2 * 10**9),
        ("64kB", 64_000),
        (77, 77),
    ],
)
def test_amounts_are_read(text: str | int, amount: int) -> None:
    """Binary and decimal units, with or without a space, or a number of bytes."""
    assert amount == parse_bytes(text)


@pytest.mark.parametrize("text", ["4G", "4gib", "GiB", "", "-1GiB", "1e9B", "4 GiB each", "4096", "٤GiB"])
def test_other_text_is_refused(text: str) -> None:
    """A unit is not guessed: "4G" is 7 % more or less."""
    with pytest.raises(ValueError, match="such as '4GiB'"):
        parse_bytes(text)


def test_amounts_are_written() -> None:
    """In the largest unit that fits."""
    assert ("4 GiB", "1.5 MiB", "12 B") == (memory_text(4 * 2**30), memory_text(3 * 2**19), memory_text(12))
