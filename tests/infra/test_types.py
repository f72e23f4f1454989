"""Types of the provider's constructs, as mypy and an editor see them through `airbridge.infra.cdk`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SNIPPET = """
from airbridge.infra.cdk import Construct, aws

def build(scope: Construct) -> None:
    queue = aws.sqs_queue.SqsQueue(scope, "queue", name=7, visibility_timeout_second=30)
    reveal_type(queue.arn)
"""


def test_wrong_prop_is_reported(tmp_path: Path) -> None:
    """A prop of the wrong type and one that does not exist are errors, and attributes have types."""
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "infra/pyproject.toml",
        str(tmp_path / "snippet.py"),
    ]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert 'Argument "name" to "SqsQueue" has incompatible type "int"; expected "str | None"' in ran.stdout
    assert 'Unexpected keyword argument "visibility_timeout_second" for "SqsQueue"' in ran.stdout
    assert 'Revealed type is "str"' in ran.stdout.replace("builtins.", "")
