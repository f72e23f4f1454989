"""Examples in the docs are accepted by the models that read them, and events that the docs name are logged."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.unit.docs.pages import ROOT, Page, current
from tests.unit.executor.catalogues import TOML

from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.policy.rules import RulePolicy
from airbridge.core import near
from airbridge.core.catalogue import Catalogue
from airbridge.executor.provider import get_provider_info

PAGES = current()
EVENTS = (
    "audit|aws|call|claim|clock|enrol|exchange|gateway|identity|message|poller|record|request|scaling|write"
)


def page(name: str) -> Page:
    """Return a page by its path."""
    return Page(ROOT / name)


def test_policy_example_is_a_policy() -> None:
    """The example of the policy guide is read by the gateway's own parser."""
    [text] = page("docs/how-to/write-a-policy.md").blocks("toml")
    assert RulePolicy.parse(text.encode(), "example")


@pytest.mark.parametrize(("command", "misspelt"), [("check", True), ("explain", False)])
def test_policy_commands_print_as_shown(command: str, misspelt: bool, tmp_path: Path) -> None:
    """The commands of the policy guide print what the guide shows, up to its omissions."""
    guide = page("docs/how-to/write-a-policy.md")
    [policy] = guide.blocks("toml")
    (tmp_path / "policy.toml").write_text(
        policy.replace("connections.read", "conections.read") if misspelt else policy
    )
    [block] = [each for each in guide.blocks("console") if f"policy {command} " in each]
    line, *shown = block.splitlines()
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "airbridge.control_plane.cli",
            *shlex.split(line.removeprefix("$ airbridge ")),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "COLUMNS": "400", "HOME": str(tmp_path)},
    )
    printed = " ".join((ran.stdout + ran.stderr).split())
    assert [each for each in shown if " ".join(each.partition("...")[0].split()) not in printed] == []


def test_catalogue_example_is_a_catalogue() -> None:
    """The example of the region catalogue is valid, with a home region added."""
    [text] = page("docs/reference/interfaces.md").blocks("toml")
    whole = text.replace('"http://..."', '"http://127.0.0.1/queue"').replace(
        "iam::...", "iam::123456789012:role/edge"
    )
    region = whole[whole.index("[[region]]") : whole.index("[[team]]")]
    home = region.replace("eu-west-1", "us-east-1").replace("/queue", "/home")
    catalogue = Catalogue.parse(f"{whole}\n{home}")
    assert catalogue.names == ("eu-west-1", "us-east-1")
    assert catalogue.team_of("finance-dags") == "finance"


def test_team_example_is_of_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teams of the guide have only keys that exist, with allowed values."""
    monkeypatch.syspath_prepend(str(ROOT / "infra" / "src"))
    import tomllib

    from airbridge.infra.catalogue import render
    from airbridge.infra.environment import Team

    [text] = page("docs/how-to/share-pools.md").blocks("toml")
    teams = [Team.model_validate(each) for each in tomllib.loads(text)["team"]]
    assert [(team.name, team.weight) for team in teams] == [("finance", 2.0), ("research", 1.0)]
    _home, _, rendered = render("", [], [team.model_dump(mode="json") for team in teams]).partition(
        "[[team]]"
    )
    catalogue = Catalogue.parse(f"{TOML}\n[[team]]{rendered}")
    assert [team.model_dump() for team in catalogue.teams] == [team.model_dump() for team in teams]


def test_limit_example_is_of_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the guide have only keys that exist, and its task's hints name one of them."""
    monkeypatch.syspath_prepend(str(ROOT / "infra" / "src"))
    import tomllib

    from airbridge.core.hints import Hints, near
    from airbridge.infra.catalogue import render
    from airbridge.infra.environment import Limit

    guide = page("docs/how-to/limit-shared-systems.md")
    [text] = guide.blocks("toml")
    limits = [Limit.model_validate(each) for each in tomllib.loads(text)["limit"]]
    dumped = [limit.model_dump(mode="json", exclude_none=True) for limit in limits]
    _home, _, rendered = render("", [], limits=dumped).partition("[[limit]]")
    catalogue = Catalogue.parse(f"{TOML}\n[[limit]]{rendered.replace('gpu@us-east-1', 'us-east-1')}")
    assert [limit.name for limit in catalogue.limits] == ["erp", "mail", "licences"]
    assert catalogue.limits[1].starts_per_minute == 60
    [code] = guide.blocks("python")
    hints = Hints.read(near("s3://orders/2026", limits=["erp"]))
    assert 'near("s3://orders/2026", limits=["erp"])' in code
    assert set(hints.limits) <= {limit.name for limit in limits}


def test_environment_example_is_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """The regions of the AWS guide have only keys that exist, with allowed values."""
    monkeypatch.syspath_prepend(str(ROOT / "infra" / "src"))
    import tomllib

    from airbridge.infra.environment import RegionConfig
    from airbridge.infra.ui_auth import Auth

    plain, sign_in, brought = page("docs/how-to/deploy-on-aws.md").blocks("toml")
    assert Auth.model_validate(tomllib.loads(sign_in)["control_plane"]["auth"]).is_oidc
    for text in (plain, brought):
        [region] = tomllib.loads(text)["region"]
        assert RegionConfig.model_validate(region).name == "eu-west-1"


@pytest.mark.parametrize("each", PAGES, ids=lambda each: each.name)
def test_hints_are_valid(each: Page) -> None:
    """Every call of `near` in a Python example is accepted."""
    for block in each.blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "near":
                assert _called(node)


def _called(node: ast.Call) -> Any:
    arguments = [_value(each) for each in node.args]
    return near(*arguments, **{str(each.arg): _value(each.value) for each in node.keywords})


def _value(node: ast.expr) -> Any:
    """Return a literal, or a product of numbers."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _value(node.left) * _value(node.right)
    return ast.literal_eval(node)


@pytest.mark.parametrize("each", PAGES, ids=lambda each: each.name)
def test_configuration_examples_name_settings(each: Page) -> None:
    """Options of section airbridge in INI examples exist."""
    known = get_provider_info()["config"]["airbridge"]["options"]
    for block in each.blocks("ini"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(block)
        assert set(parser.options("airbridge") if parser.has_section("airbridge") else ()) <= set(known)


@pytest.mark.parametrize("each", PAGES, ids=lambda each: each.name)
def test_scopes_are_valid(each: Page) -> None:
    """Scopes that a command of the docs grants are accepted by the token service."""
    text = "\n".join(each.blocks("console", "bash")).replace("\\\n", " ")
    for line in text.splitlines():
        if "--scope" in line:
            words = shlex.split(line)
            scopes = [words[index + 1] for index, word in enumerate(words) if word == "--scope"]
            assert Scopes.parse(scopes)


@cache
def sources() -> str:
    """Return the text of all modules."""
    return "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*/src/**/*.py"))


@pytest.mark.parametrize("each", PAGES, ids=lambda each: each.name)
def test_events_exist(each: Page) -> None:
    """Events of the log and of the audit trail that a page names are written somewhere."""
    named = {code for code in each.inline if re.fullmatch(rf"({EVENTS})\.(?!log$)[a-z_]+", code)}
    assert [name for name in sorted(named) if f'"{name}"' not in sources()] == []


def sentences() -> list[tuple[str, str]]:
    """Return the pattern and the code of each sentence that the acceptance tests expect of a problem."""
    tree = ast.parse((ROOT / "tests" / "acceptance" / "test_troubles.py").read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "names":
            code, pattern = node.args[1:3]
            if isinstance(code, ast.Constant) and isinstance(pattern, ast.Constant):
                found.append((pattern.value, code.value))
    return [(pattern, code) for pattern, code in found if code not in {"ended", "running"}]


def test_troubleshooting_shows_real_messages() -> None:
    """Each sentence that the acceptance tests expect is in the row of its code; times and digests differ."""
    rows = [line for line in page("docs/how-to/troubleshoot.md").text.splitlines() if line.startswith("| ")]
    missing = []
    for pattern, code in sentences():
        inner = pattern.strip("^$").removeprefix("(note: )?").replace(".*", ".*?")
        if not any(f"`{code}`" in row and re.search(inner, row) for row in rows):
            missing.append((code, pattern))
    assert (missing, len(sentences()) > 10) == ([], True)
