"""Shared kernel of control plane and edge: wire protocol, signing, compatibility, AWS clients, sandboxing.

Nothing is imported before its first use: a DAG file that uses `near` loads nothing else of AirBridge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airbridge.core.hints import near

__all__ = ["near"]


def __getattr__(name: str) -> Any:
    if name == "near":
        from airbridge.core.hints import near

        return near
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
