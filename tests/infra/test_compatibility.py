"""The stacks under cdktf and under cdktn, its continuation: the same JSON, but for what names the library.

The second library needs an environment of its own: AIRBRIDGE_CDKTN_PYTHON names its Python (`make infra-cdktn`).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import ENVIRONMENTS, Stacks, read

INFRA = ENVIRONMENTS.parent
PYTHON = os.environ.get("AIRBRIDGE_CDKTN_PYTHON", str(INFRA / ".venv-cdktn" / "bin" / "python"))
# Differences by design: the library's own version, and the provider's source, of which cdktf writes a shorter form.
DOCUMENTED = {"////metadata/version", "/terraform/required_providers/aws/source"}


@pytest.mark.skipif(not Path(PYTHON).exists(), reason="cdktn is not installed: make infra-cdktn")
def test_both_libraries_write_the_same_stacks(local: Stacks, tmp_path: Path) -> None:
    """Every stack of an environment is equal, key by key."""
    command = [PYTHON, "-m", "airbridge.infra.synth", "--here", "--directory", str(ENVIRONMENTS)]
    environment = {**os.environ, "PYTHONPATH": str(INFRA / "src")}
    subprocess.run([*command, "--out", str(tmp_path), "local"], check=True, env=environment)
    others = read(tmp_path / "local")
    assert local.keys() == others.keys()
    for stack, content in local.items():
        ours, theirs = dict(_flat(content)), dict(_flat(others[stack]))
        different = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        assert {key for key in different if "/provisioner" not in key} == DOCUMENTED


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for inner, item in value.items():
            yield from _flat(item, f"{key}/{inner}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _flat(item, f"{key}[{index}]")
    else:
        yield key, value
