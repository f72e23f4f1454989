"""The closing line and exit status of a body of evidence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "ci" / "scripts" / "proof.py"


def run(tmp_path: Path, source: str, *more: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "test_it.py").write_text(source)
    # pytest's own -n, --no-retries and --slow come from this repository's plugins; here they are stand-ins.
    (tmp_path / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--no-retries', action='store_true')\n"
        "    parser.addoption('--slow', action='store_true')\n"
    )
    return subprocess.run(
        [sys.executable, str(SCRIPT), "sample", "test_it.py", *more],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "line", "status"),
    [
        ("def test_a(): pass\ndef test_b(): pass\n", "proof-sample: 2 checks, 0 failed", 0),
        ("def test_a(): pass\ndef test_b(): assert False\n", "proof-sample: 2 checks, 1 failed", 1),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): pass\n", "proof-sample: 0 checks, 0 failed", 1),
        ("import no_such_module\n", "proof-sample: 1 checks, 1 failed", 1),
    ],
)
def test_closing_line_counts_checks(tmp_path: Path, source: str, line: str, status: int) -> None:
    """Passed and failed tests are counted, skipped ones are not; nothing run is a failure."""
    done = run(tmp_path, source)
    assert line == done.stdout.splitlines()[-1]
    assert status == done.returncode


@pytest.mark.parametrize(
    ("source", "line", "status"),
    [
        ("def test_a(): pass\ndef test_b(): assert False\n", "proof-sample: 3 checks, 1 failed", 1),
        ("def test_a(): pass\n", "proof-sample: 2 checks, 0 failed", 0),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): pass\n", "proof-sample: 1 checks, 0 failed", 1),
    ],
)
def test_infrastructure_has_a_session(tmp_path: Path, source: str, line: str, status: int) -> None:
    """Tests of the infrastructure run by its own Python, and count; a session in which nothing ran is a failure."""
    (tmp_path / "infra/.venv/bin").mkdir(parents=True)
    (tmp_path / "infra/.venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "tests/infra").mkdir(parents=True)
    (tmp_path / "tests/infra/test_rules.py").write_text(source)
    done = run(tmp_path, "def test_c(): pass\n", "--infra", "tests/infra/test_rules.py")
    assert line == done.stdout.splitlines()[-1]
    assert status == done.returncode
