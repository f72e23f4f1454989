"""What commands print is what they were given: no markup, no emoji codes, no control characters."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from click.testing import CliRunner
from rich.console import Console
from tests.unit.cli.test_commands import Gateway

from airbridge import ci
from airbridge.ci.cli import output as ci_output
from airbridge.ci.cli.main import app as ci_app
from airbridge.control_plane import cli
from airbridge.control_plane.cli import app, connection, output
from airbridge.core.command_tree import printable
from airbridge.edge_worker import cli as worker_cli

HOSTILE = ("[/x]", "[[rule]]", "ci[conceal]", "a :warning: b", "[link=http://evil.example]x[/link]", "\\[x]")
AUDIT_ROW = {
    "id": 1,
    "at": "2026-01-01T00:00:00+00:00",
    "event": "request.refused",
    "verdict": "denied",
    "actor": "anonymous",
    "address": "203.0.113.7:1",
    "rule": "method",
    "worker_id": None,
    "ti_id": None,
    "detail": {"path": "/operator/v1/environments/[/x]"},
}


@pytest.mark.parametrize("value", HOSTILE)
def test_cells_are_printed_as_they_are(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Title, columns and cells of a table are text, on any console."""
    table = output.table(f"title {value}", (f"column {value}",), [(f"cell {value}",)])
    output.results().print(table)
    anywhere = io.StringIO()
    Console(file=anywhere, width=200).print(table)
    for printed in (capsys.readouterr().out, anywhere.getvalue()):
        assert [f"title {value}", f"column {value}", f"cell {value}"] == [
            line.rstrip() for line in printed.splitlines()
        ]


@pytest.mark.parametrize("value", HOSTILE)
def test_messages_are_printed_as_they_are(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A console of the command line interprets nothing, whatever a caller gives it."""
    output.messages().print(value)
    output.results().print(value)
    found = capsys.readouterr()
    assert (f"{value}\n", f"{value}\n") == (found.err, found.out)


@pytest.mark.parametrize("value", HOSTILE)
def test_ci_prints_values_as_they_are(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages and tables of airbridge-ci are text."""
    ci_output.report(value)
    ci_output.complain(value)
    ci_output.result_table(("column",), [(value,)])
    found = capsys.readouterr()
    assert f"{value}\n{value}\n" == found.err
    assert value == found.out.splitlines()[1].rstrip()


def test_control_characters_are_visible(capsys: pytest.CaptureFixture[str]) -> None:
    """A value cannot move the cursor, hide what stands before it, or reverse the text; lines and tabs stay."""
    value = "a\x1b[2Jb\rc\x00d\x9be\u202ef\n\tg"
    output.results().print(value)
    output.results().print(output.table(None, ("column",), [(value,)]))
    found = capsys.readouterr().out
    assert 2 == found.count("a\\x1b[2Jb\\rc\\x00d\\x9be\\u202ef\n")
    assert not set("\x1b\r\x00\x9b\u202e") & set(found)


def test_audit_prints_refused_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's request does not decide whether the audit trail can be read."""
    gateway = Gateway((200, {"rows": [AUDIT_ROW], "next": None}))
    monkeypatch.setattr(connection, "client", gateway.client)
    result = CliRunner().invoke(app.command(), ["audit"])
    assert result.exit_code == 0, result.exception
    assert "path=/operator/v1/environments/[/x]" in result.stdout


def test_consoles_are_made_in_one_place() -> None:
    """Only the output modules make consoles: another one would interpret what it prints."""
    made = [
        str(path)
        for package in (cli, ci)
        for folder in package.__path__
        for path in Path(folder).rglob("*.py")
        if path.name != "output.py" and re.search(r"\bConsole\(", path.read_text())
    ]
    assert made == []


def pages(command: click.Command, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], list[str]]]:
    """Commands, with the names in brackets that their help has."""
    described = [command, *command.params]
    texts = [getattr(each, name, None) or "" for each in described for name in ("help", "epilog")]
    named = [(path, [name for text in texts for name in re.findall(r"\[+[a-z/][a-z_/.]*\]+", text)])]
    for name, each in getattr(command, "commands", {}).items():
        named += pages(each, (*path, name))
    return named


@pytest.mark.parametrize("made", [app.build(), ci_app, worker_cli.app], ids=["airbridge", "ci", "worker"])
def test_help_keeps_names_in_brackets(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Help shows sections of files and optional parts, which Rich would take for markup."""
    monkeypatch.setenv("COLUMNS", "240")
    monkeypatch.setenv("TERMINAL_WIDTH", "240")
    checked = 0
    for path, names in pages(typer.main.get_command(made)):
        if names:
            result = CliRunner().invoke(printable(typer.main.get_command(made)), [*path, "--help"])
            assert result.exit_code == 0, (path, result.exception)
            for name in names:
                assert name in result.output, path
            checked += 1
    assert checked or made is worker_cli.app
