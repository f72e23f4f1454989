"""Patterns of params: jsonschema matches them where the deadline is installed, and none holds a process."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from airbridge.executor import param_patterns

MODULES = ("_keywords", "_legacy_keywords", "_utils")
VALIDATE = """
import sys
from airbridge.executor import param_patterns
if sys.argv[1] == "installed":
    param_patterns.install()
from airflow.exceptions import ParamValidationError
from airflow.sdk.definitions.param import Param
try:
    Param(default=sys.argv[2], **eval(sys.argv[3])).resolve()
    print("accepted")
except ParamValidationError:
    print("refused")
"""
CATASTROPHES = {
    "pattern": ("a" * 40 + "!", {"type": "string", "pattern": "^(a+)+$"}),
    "alternation": ("a" * 40 + "!", {"type": "string", "pattern": "^(a|a)*$"}),
    "cubic": ("a" * 30_000, {"type": "string", "pattern": "a*a*a*b"}),
    "dotted": ("x" * 30_000, {"type": "string", "pattern": "(.*)*y"}),
}


def validate(how: str, value: str, schema: dict[str, str], seconds: float = 60) -> str:
    command = [sys.executable, "-c", VALIDATE, how, value, repr(schema)]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=seconds
    ).stdout.splitlines()[-1]


@pytest.mark.parametrize("name", CATASTROPHES)
def test_slow_patterns_end(name: str) -> None:
    """A value whose check would take for ever is refused."""
    assert "refused" == validate("installed", *CATASTROPHES[name])


def test_pattern_stops_a_process_otherwise() -> None:
    """Without the deadline the same pattern does not end: the test would notice if jsonschema bounded it by itself."""
    with pytest.raises(subprocess.TimeoutExpired):
        validate("not", *CATASTROPHES["pattern"], seconds=20)


@pytest.mark.parametrize(
    ("pattern", "value", "wanted"),
    [
        (r"^[a-z0-9]+(-[a-z0-9]+)*$", "a-slug-1", "accepted"),
        (r"^[a-z0-9]+(-[a-z0-9]+)*$", "a--b", "refused"),
        (r"^(?=.*\d)(?!x)\w{3,}$", "abc1", "accepted"),
        (r"^(\w)\1$", "aa", "accepted"),
        (r"^\d{4}-\d{2}-\d{2}$", "2026-11-28", "accepted"),
        (r"[\d-]+$", "a", "refused"),
    ],
)
def test_ordinary_patterns_hold(pattern: str, value: str, wanted: str) -> None:
    """What people write keeps its meaning, look-ahead and references included."""
    assert wanted == validate("installed", value, {"type": "string", "pattern": pattern})


def test_slow_value_poisons_no_pattern() -> None:
    """A pattern that one value made slow goes on matching the values of others."""
    pattern = "^(a|a)*$"
    assert param_patterns.search(pattern, "a" * 40 + "!") is None
    assert param_patterns.search(pattern, "aaa") is not None


def test_many_slow_patterns_are_hurried(capsys: pytest.CaptureFixture[str]) -> None:
    """After the first slow match the next ones get a tenth of the time: a schema may have any number of them."""
    param_patterns.search("^(a|a)*$", "a" * 40 + "!")
    param_patterns.search("^(b|b)*$", "b" * 40 + "!")
    assert f"seconds={param_patterns.HURRIED_SECONDS}" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("module", MODULES)
def test_jsonschema_only_searches(module: str) -> None:
    """The three modules use `re.search` alone, and no other module of jsonschema matches a schema's patterns."""
    tree = ast.parse(Path(str(importlib.import_module(f"jsonschema.{module}").__file__)).read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "re"
    }
    assert {"search"} == used


def test_no_other_module_matches() -> None:
    """Of the other modules, none searches: their expressions are constants."""
    folder = Path(str(importlib.import_module("jsonschema").__file__)).parent
    found = {file.stem for file in folder.glob("*.py") if "re.search(" in file.read_text()}
    assert set(MODULES) == found
