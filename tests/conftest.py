"""Fixtures every suite may use. They start nothing until a test asks for them."""

from __future__ import annotations

from tests.support.moto import moto

__all__ = ["moto"]
