"""Template rendering with autoescaping, and static files addressed by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from airbridge.control_plane.dashboard import formatting

HERE: Final = Path(__file__).parent
STATIC: Final = HERE / "static"

# Content-Security-Policy: nothing from other origins, and no inline script or style.
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@cache
def environment() -> Environment:
    """Return the template environment."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(formatting.FILTERS)
    # The order of a chart's lines is that of the page.
    made.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return made


def render(template: str, values: Mapping[str, Any]) -> str:
    """Render a template. The values must contain ``root``, the path that the dashboard is served under."""
    root = values["root"]
    return environment().get_template(template).render(values, asset=lambda name: asset(root, name))


def asset(root: str, name: str) -> str:
    """Return the path of a static file, with its digest so that browsers may cache it for ever."""
    return f"{root}/static/{name}?v={_digest(name)}"


@cache
def _digest(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:16]
