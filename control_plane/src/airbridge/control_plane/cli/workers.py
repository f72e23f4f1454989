"""Placeholder until the gateway's API lands."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None: ...
def build() -> typer.Typer:
    return typer.Typer()
