"""`airbridge-ci advisories`: statements about vulnerabilities against the lock, the tests and the generated files."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from airbridge.ci.advisories import checks, openvex, page
from airbridge.ci.advisories.statements import FILE, load
from airbridge.ci.checkout import Checkout
from airbridge.ci.cli.main import app
from airbridge.ci.exceptions import CheckoutError
from airbridge.ci.images.specs import IMAGES
from airbridge.ci.parity.facts import Facts

ROOT = Path(__file__).parents[3]
LOCK = """\
[[package]]
name = "airbridge-control-plane"
version = "0.1.0"
dependencies = [{ name = "leaky", extra = ["more"] }]

[[package]]
name = "airbridge-edge-worker"
version = "0.1.0"

[[package]]
name = "leaky"
version = "{version}"

[package.optional-dependencies]
more = [{ name = "inner" }]

[[package]]
name = "inner"
version = "1.0"
"""
STATEMENTS = """\
date = 2026-10-10
revision = 1

[[package]]
name = "leaky"
version = "{version}"

[[package.advisory]]
id = "CVE-2026-10001"
affected = [">=1.0,<2.0"]
source = "https://example.org/1"
{statement}
"""
FIXED = 'status = "fixed"\nimpact = "It leaked."'
AFFECTED = 'status = "affected"\nimpact = "It leaks."\naction = "Do not pour."'
NOT_AFFECTED = (
    'status = "not_affected"\njustification = "vulnerable_code_not_present"\nimpact = "It has no spout."'
)


def checkout(
    folder: Path, statement: str = FIXED, *, locked: str = "2.0", stated: str | None = None
) -> Checkout:
    """Return a checkout with one locked package, one advisory and what is generated from it."""
    for path, text in {
        "compatibility.toml": "",
        "uv.lock": LOCK.replace("{version}", locked),
        FILE: STATEMENTS.replace("{version}", stated or locked).replace("{statement}", statement),
        "tests/test_it.py": "def test_leak() -> None:\n    pass\n",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    made = Checkout(folder)
    for path, text in checks.generated(Facts(made), load(made)).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return replace(made, _cache={})


def found(folder: Path, statement: str = FIXED, **versions: str) -> list[str]:
    return [str(finding) for finding in checks.check(checkout(folder, statement, **versions))]


@pytest.mark.parametrize(
    ("locked", "statement"),
    [("2.0", FIXED), ("1.9", AFFECTED), ("1.9", NOT_AFFECTED), ("2.0", NOT_AFFECTED), ("2.0", "")],
)
def test_true_statement_passes(tmp_path: Path, locked: str, statement: str) -> None:
    """A statement that holds for the locked version is no finding, and no statement is needed outside of the range."""
    assert [] == found(tmp_path, statement, locked=locked)


@pytest.mark.parametrize(
    ("locked", "statement", "says"),
    [
        ("1.9", "", "leaky 1.9 is in the affected range >=1.0,<2.0, the status is missing"),
        ("1.9", FIXED, "leaky 1.9 is in the affected range >=1.0,<2.0, the status is fixed"),
        ("2.0", AFFECTED, "leaky 2.0 is outside of the affected range >=1.0,<2.0, the status is affected"),
    ],
)
def test_planted_version_is_found(tmp_path: Path, locked: str, statement: str, says: str) -> None:
    """A version in an affected range without a statement, or under a wrong one, fails the check."""
    (finding,) = found(tmp_path, statement, locked=locked)
    assert says in finding
    assert finding.startswith(f"{FILE}:9: advisory-status: CVE-2026-10001: ")


@pytest.mark.parametrize("statement", [FIXED, NOT_AFFECTED])
def test_stated_version_is_the_locked_one(tmp_path: Path, statement: str) -> None:
    """Statements about another version than the locked one fail, even where they would still hold."""
    (finding,) = found(tmp_path, statement, locked="2.1", stated="2.0")
    assert "leaky is locked at 2.1, the statements are about 2.0" in finding


def test_unlocked_package_is_found(tmp_path: Path) -> None:
    """Statements about a package that is not locked are to be removed."""
    made = checkout(tmp_path)
    (tmp_path / "uv.lock").write_text(LOCK.replace('name = "leaky"\nversion', 'name = "tight"\nversion'))
    assert any("leaky is not in uv.lock" in str(each) for each in checks.check(replace(made, _cache={})))


def test_missing_test_is_found(tmp_path: Path) -> None:
    """Every named test is a function of the named file."""
    missing = f'{NOT_AFFECTED}\ntests = ["tests/test_it.py::test_leak", "tests/test_it.py::test_other", "tests/no.py::test_leak"]'
    text = "\n".join(found(tmp_path, missing, locked="1.9"))
    assert "there is no test tests/test_it.py::test_other" in text
    assert "there is no test tests/no.py::test_leak" in text
    assert "test_it.py::test_leak" not in text


@pytest.mark.parametrize("path", [page.FILE, openvex.FILE])
def test_drift_is_found(tmp_path: Path, path: str) -> None:
    """An edited page or document, and a missing one, differ from the statements."""
    made = checkout(tmp_path)
    (tmp_path / path).write_text("edited")
    assert [path] == [each.path for each in checks.check(replace(made, _cache={}))]
    (tmp_path / path).unlink()
    assert [path] == [each.path for each in checks.check(replace(made, _cache={}))]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ('status = "not_affected"\nimpact = "x"', "a justification is for the status not_affected"),
        ('status = "affected"\nimpact = "x"', "needs an action"),
        ('status = "fixed"', "needs its impact"),
        ('status = "harmless"', "Input should be 'affected', 'not_affected' or 'fixed'"),
        (
            'status = "not_affected"\njustification = "inline_mitigations_already_exist"\nimpact = "x"',
            "needs the compensation",
        ),
    ],
)
def test_incomplete_statement_is_refused(tmp_path: Path, wrong: str, says: str) -> None:
    """A statement without what its status requires cannot be read; the error names its place."""
    with pytest.raises(CheckoutError, match=r"ci/advisories.toml: package\.0\.advisory\.0") as refused:
        checkout(tmp_path, wrong)
    assert says in str(refused.value)


def test_wrong_range_is_refused(tmp_path: Path) -> None:
    """A range is one of PEP 440."""
    checkout(tmp_path)
    text = (tmp_path / FILE).read_text().replace(">=1.0,<2.0", "before 2.0")
    (tmp_path / FILE).write_text(text)
    with pytest.raises(CheckoutError, match="is not a range of versions"):
        load(Checkout(tmp_path))


def test_old_file_warns(tmp_path: Path) -> None:
    """The date is always shown; after 120 days the sentence asks for newer advisories."""
    stated = load(checkout(tmp_path))
    fresh, stale = (checks.age(stated, stated.date + timedelta(days=days)) for days in (120, 121))
    assert (False, True) == (fresh[1], stale[1])
    assert "2026-10-10, 120 days ago" in fresh[0]
    assert "add newer advisories" in stale[0]


def test_product_contains_the_package(tmp_path: Path) -> None:
    """A statement is about the images that contain the package, extras of dependencies included."""
    made = checkout(tmp_path, NOT_AFFECTED, locked="1.9")
    (statement,) = json.loads((tmp_path / openvex.FILE).read_text())["statements"]
    assert [{"@id": "pkg:oci/control-plane", "subcomponents": [{"@id": "pkg:pypi/leaky@1.9"}]}] == statement[
        "products"
    ]
    assert ("not_affected", "vulnerable_code_not_present") == (
        statement["status"],
        statement["justification"],
    )
    assert {"airbridge-control-plane", "leaky", "inner"} == openvex.packages_of(
        Facts(made), IMAGES[0].package
    )


def test_command_checks_and_generates(tmp_path: Path) -> None:
    """--check fails with exit code 3 until the files are generated; --accepted prints what pip-audit may ignore."""
    checkout(tmp_path, NOT_AFFECTED, locked="1.9")
    (tmp_path / page.FILE).unlink()
    run = CliRunner()
    failed = run.invoke(app, ["advisories", "--root", str(tmp_path), "--check"])
    assert (3, True) == (failed.exit_code, page.FILE in failed.output)
    assert 0 == run.invoke(app, ["advisories", "--root", str(tmp_path)]).exit_code
    assert 0 == run.invoke(app, ["advisories", "--root", str(tmp_path), "--check"]).exit_code
    accepted = run.invoke(app, ["advisories", "--root", str(tmp_path), "--accepted"])
    assert "--ignore-vuln=CVE-2026-10001\n" == accepted.stdout


def test_project_is_accounted_for() -> None:
    """The project's own lock, tests and generated files agree with its statements."""
    assert [] == checks.check(Checkout(ROOT))


def test_fixed_is_not_ignored() -> None:
    """pip-audit is not asked to ignore what the lock is believed to have fixed."""
    stated = load(Checkout(ROOT))
    fixed = {each.id for _, each in stated.statements() if each.status == "fixed"}
    assert fixed.isdisjoint(stated.accepted())
    assert date(2026, 1, 1) < stated.date
