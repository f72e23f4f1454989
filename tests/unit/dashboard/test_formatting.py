"""Formatting of values on a page, and parsing of a query string."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from airbridge.control_plane.dashboard import formatting
from airbridge.control_plane.dashboard.queries import PAGE_SIZE, Query


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "\u2013"),
        (0.0, "0 ms"),
        (0.0834, "83 ms"),
        (9.96, "10.0 s"),
        (60, "1 min"),
        (245, "4 min 5 s"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (90_000, "1 d 1 h"),
        (-1.5, "-1.5 s"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, words: str) -> None:
    """Durations are rounded to at most two units."""
    assert words == formatting.duration(seconds)


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 1024**2, "5.0 MiB"), (2**41, "2048.0 GiB")],
)
def test_sizes_have_a_unit(count: int, words: str) -> None:
    """Sizes are given in the largest unit that fits."""
    assert words == formatting.size(count)


def test_details_are_escaped() -> None:
    """Names and values are text, however they look."""
    shown = formatting.detail({"why": "<b>", "<i>": 1, "none": None, "list": ["a", "<u>"], "empty": ""})
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "&lt;b&gt;" in shown
    assert "a, &lt;u&gt;" in shown
    assert "none" not in shown
    assert "empty" not in shown


def test_ages_are_left_to_the_browser() -> None:
    """A time that is shown as an age reads the same however long ago it is: the page does not change by itself."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert 'data-ago datetime="2026-01-02T03:04:05+00:00"' in formatting.ago(at)
    assert "03:04:05" in formatting.ago(at)


def test_digest_is_shortened_with_title() -> None:
    """An operator compares the beginning and can copy the whole."""
    digest = "sha256:" + "ab" * 32
    assert f'title="{digest}"' in formatting.digest(digest)
    assert "sha256:abababababab\u2026" in formatting.digest(digest)


def test_malformed_query_chooses_nothing() -> None:
    """Numbers that are none, pages that cannot be and characters that no name has are dropped."""
    query = Query({"page": "-3", "q": " a\x00b\n ", "empty": "  ", "n": "12x"})
    assert (query.page().number, query.page().size) == (1, PAGE_SIZE)
    assert query.text("q") == "ab"
    assert query.text("empty") is None
    assert query.number("n", -1) == -1
    assert Query({"page": "99999999999"}).page().number == 1
    assert query.string(page=2, q=None, empty=None, n=None) == "page=2"


def test_worker_uri_is_shortened() -> None:
    """The whole is in the title; a person, a part of the platform and what only looks like a URI stay as they are."""
    uri = "spiffe://example.com/region/eu-west-1/pool/default/worker/disk-<b>"
    assert "example.com/…/disk-&lt;b&gt;" in formatting.who(uri)
    assert "/region/eu-west-1/" in formatting.who(uri)
    assert ["user:ana", "outbox", "spiffe://w"] == [
        formatting.who(one) for one in ("user:ana", "outbox", "spiffe://w")
    ]
