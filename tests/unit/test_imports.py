"""ci/scripts/import_rules.py: the direction of imports between the packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("core", "executor", "control_plane", "edge_worker", "infra", "ci")


def check(checkout: Path) -> tuple[int, str]:
    """Exit status and findings of the script."""
    command = [sys.executable, str(ROOT / "ci" / "scripts" / "import_rules.py"), str(checkout)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    return ran.returncode, ran.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose packages have a module each, that imports what it may."""
    for package in PACKAGES:
        plant(tmp_path, package, f"from airbridge.{package} import other\nimport os\n")
    for package in PACKAGES[1:]:
        plant(tmp_path, package, "import airbridge.core.protocol\nfrom airbridge import core\n", "allowed.py")
    plant(tmp_path, "control_plane", "from airbridge.executor import ledger\n", "allowed.py")
    return tmp_path


def plant(checkout: Path, package: str, text: str, name: str = "module.py") -> Path:
    """Write a module of a package."""
    path = checkout / package / "src" / "airbridge" / package / "inner" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_this_checkout_is_clean() -> None:
    """No package imports against the direction."""
    assert check(ROOT) == (0, "")


def test_allowed_imports_pass(checkout: Path) -> None:
    """Imports that the design allows are not reported."""
    assert check(checkout) == (0, "")


@pytest.mark.parametrize(
    ("package", "imported"),
    [
        *(("core", other) for other in PACKAGES[1:]),
        *(("executor", other) for other in ("control_plane", "edge_worker", "infra", "ci")),
        *(("control_plane", other) for other in ("edge_worker", "infra", "ci")),
        *(("edge_worker", other) for other in ("executor", "control_plane", "infra", "ci")),
        *(("infra", other) for other in ("executor", "control_plane", "edge_worker", "ci")),
        *(("ci", other) for other in ("executor", "control_plane", "edge_worker", "infra")),
    ],
)
def test_reversed_import_fails(checkout: Path, package: str, imported: str) -> None:
    """Every arrow that is not allowed is found, with file and line."""
    path = plant(checkout, package, f"import os\nimport airbridge.{imported}.models\n", "wrong.py")
    expected = f"{path.relative_to(checkout)}:2: {package} must not import airbridge.{imported}\n"
    assert check(checkout) == (1, expected)


@pytest.mark.parametrize(
    "text",
    [
        "import airbridge.executor as e",
        "import os, airbridge.executor.ledger",
        "from airbridge import executor",
        "from airbridge.executor import ledger",
        "from ...executor import ledger",
        "from ... import executor",
        "def f():\n    from airbridge.executor import ledger",
        "if TYPE_CHECKING:\n    from airbridge.executor import ledger",
        "importlib.import_module('airbridge.executor.ledger')",
        "__import__('airbridge.executor')",
    ],
)
def test_every_form_is_found(checkout: Path, text: str) -> None:
    """Absolute, relative, late, for types only and by name: each is an import."""
    plant(checkout, "edge_worker", text, "wrong.py")
    status, findings = check(checkout)
    assert status == 1
    assert "edge_worker must not import airbridge.executor" in findings


def test_unknown_package_fails(checkout: Path) -> None:
    """A package that the rule does not name, and one that is missing, are findings."""
    plant(checkout, "extra", "")
    plant(checkout, "core", "").parents[1].rename(checkout / "gone")
    status, findings = check(checkout)
    assert status == 1
    assert findings.splitlines() == [
        "core: there is no such package in this checkout",
        "extra/src/airbridge/extra: no rule says what this package may import",
    ]
