"""The `airbridge` command line."""

from __future__ import annotations

from airbridge.control_plane.cli.app import main

__all__ = ["main"]
