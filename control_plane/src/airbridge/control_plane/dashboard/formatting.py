"""Jinja filters for times, durations and counts. Every result is safe in HTML."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from markupsafe import Markup, escape

from airbridge.control_plane.read_model.history import clock_skew

DASH: Final = "\u2013"
NOTHING: Final = Markup('<span class="none">{}</span>').format(DASH)


def when(value: datetime | None, *, full: bool = False) -> Markup:
    """Format a time of day in UTC, with its date if `full`. The title always has both."""
    if value is None:
        return NOTHING
    at = value.astimezone(UTC)
    shown = f"{at:%Y-%m-%d %H:%M:%S}" if full else f"{at:%H:%M:%S}"
    return Markup('<time datetime="{}" title="{}">{}</time>').format(
        at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S} UTC", shown
    )


def ago(value: datetime | None) -> Markup:
    """Format a time that the browser shows as an age and updates itself, so that an unchanged page is not sent again."""
    if value is None:
        return NOTHING
    at = value.astimezone(UTC)
    return Markup('<time data-ago datetime="{}" title="{}">{}</time>').format(
        at.isoformat(), f"{at:%Y-%m-%d %H:%M:%S} UTC", f"{at:%H:%M:%S}"
    )


def duration(seconds: float | None) -> str:
    """Format a duration in at most two units."""
    if seconds is None:
        return DASH
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for name, size, below, part in (("min", 60, 3600, "s"), ("h", 3600, 86_400, "min")):
        if seconds < below:
            whole, rest = divmod(int(seconds), size)
            rest = rest if name == "min" else rest // 60
            return f"{whole} {name} {rest} {part}" if rest else f"{whole} {name}"
    whole, rest = divmod(int(seconds), 86_400)
    return f"{whole} d {rest // 3600} h" if rest >= 3600 else f"{whole} d"


def number(value: float | None) -> str:
    """Format a count with thin spaces between thousands."""
    return DASH if value is None else f"{value:,}".replace(",", "\u202f")


def size(value: int | None) -> str:
    """Format bytes in the largest unit that keeps one digit before the point."""
    amount = float(value or 0)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("the loop ends at GiB")


def digest(value: str | None) -> Markup:
    """Format an image digest or thumbprint: its first characters, the whole in the title."""
    if not value:
        return NOTHING
    head, _, hexadecimal = value.rpartition(":")
    short = f"{head}:{hexadecimal[:12]}…" if head else f"{hexadecimal[:12]}…"
    return Markup('<code title="{}">{}</code>').format(value, short)


def detail(values: Any) -> Markup:
    """Format the detail of an event as ``name value`` pairs; empty values are left out."""
    pairs = [(key, value) for key, value in sorted((values or {}).items()) if value not in (None, "", [], {})]
    return Markup(" ").join(
        Markup('<span class="pair"><span>{}</span> {}</span>').format(key, escape(_text(value)))
        for key, value in pairs
    )


def who(actor: str) -> Markup | str:
    """Format an actor. A worker's SPIFFE URI is cut to trust domain and name, as region and pool have columns; the title is whole."""
    scheme, _, rest = actor.partition("://")
    parts = rest.split("/")
    if scheme != "spiffe" or len(parts) < 3:
        return actor
    return Markup('<span title="{}">{}/…/{}</span>').format(actor, parts[0], parts[-1])


def _text(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


FILTERS: Final = {
    "skewed": clock_skew.matters,
    "when": when,
    "ago": ago,
    "duration": duration,
    "number": number,
    "size": size,
    "digest": digest,
    "detail": detail,
    "who": who,
}
