"""Fixtures of the infrastructure's tests: one process, each environment synthesised once.

They need the environment of their own that `make infra-test` makes; without CDK for Terraform there is nothing to
collect.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("cdktf") is None and importlib.util.find_spec("cdktn") is None:
    collect_ignore_glob = ["test_*.py", "*/test_*.py"]

ENVIRONMENTS = Path(__file__).parents[2] / "infra" / "environments"
Stacks = dict[str, dict[str, Any]]


def read(outdir: Path) -> Stacks:
    """Every stack's JSON under a synthesised directory."""
    return {
        file.parent.name: json.loads(file.read_text()) for file in sorted(outdir.glob("stacks/*/cdk.tf.json"))
    }


@pytest.fixture(scope="session")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Stacks]:
    """Synthesise an environment by name; the second time it is remembered."""
    from airbridge.infra.app import synthesise
    from airbridge.infra.settings import Settings

    known: dict[str, Stacks] = {}

    def synth(name: str) -> Stacks:
        if name not in known:
            outdir = tmp_path_factory.mktemp(name)
            known[name] = read(synthesise(Settings(name, ENVIRONMENTS), outdir))
        return known[name]

    return synth


@pytest.fixture(scope="session")
def prod(synthesised: Callable[[str], Stacks]) -> Stacks:
    """Production's stacks."""
    return synthesised("prod")


@pytest.fixture(scope="session")
def local(synthesised: Callable[[str], Stacks]) -> Stacks:
    """The local environment's stacks."""
    return synthesised("local")
