"""Commands, settings and snippets in the docs are accepted by the code that they are for."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache

import click
import pytest
import typer.main
from click.testing import CliRunner
from tests.unit.docs.pages import ROOT, Page, current

from airbridge.ci.cli.main import app as ci_app
from airbridge.control_plane.cli.app import build
from airbridge.edge_worker.cli import app as worker_app
from airbridge.edge_worker.settings import ENV_PREFIX, WorkerSettings
from airbridge.executor.provider import get_provider_info

PAGES = current()
PROGRAMS: dict[str, click.Command] = {
    "airbridge": typer.main.get_command(build()),
    "airbridge-worker": typer.main.get_command(worker_app),
    "airbridge-ci": typer.main.get_command(ci_app),
}
INLINE = re.compile(rf"(({'|'.join(PROGRAMS)}|make|python -m) .+)")
OPTIONS = get_provider_info()["config"]["airbridge"]["options"]


class DocsError(Exception):
    """A command that the program would refuse."""


def resolve(words: list[str]) -> tuple[click.Command, list[str], str]:
    """Return the command that the words name, what is left of the words, and its path."""
    command, rest, path = PROGRAMS[words[0]], words[1:], words[0]
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        if rest[0] not in command.commands:
            raise DocsError(f"{path} has no command {rest[0]!r}")
        command, path, rest = command.commands[rest[0]], f"{path} {rest[0]}", rest[1:]
    return command, rest, path


def check_program(words: list[str], *, whole: bool) -> None:
    """Parse a command line with the program's own parser; only its options, if it is not a whole one."""
    command, rest, path = resolve(words)
    if whole:
        context = click.Context(command, info_name=path)
        try:
            _, left, _ = command.make_parser(context).parse_args(list(rest))
        except click.UsageError as error:
            raise DocsError(f"{path}: {error.message}") from error
        if left:
            raise DocsError(f"{path}: unexpected {left}")
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    if unknown:
        raise DocsError(f"{path} has no option {unknown[0]}")


@cache
def targets() -> frozenset[str]:
    """Return the targets of the Makefiles."""
    main = (ROOT / "Makefile").read_text(encoding="utf-8")
    files = (ROOT / "Makefile", *(ROOT / name for name in re.findall(r"^include (\S+)$", main, re.MULTILINE)))
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return frozenset(
        name
        for line in lines
        if (found := re.match(r"([a-z][a-z -]*):(?!=)", line))
        for name in found[1].split()
    )


def check(line: str, *, whole: bool) -> None:
    """Check one command of a line; raise DocsError if it cannot be right."""
    words = shlex.split(line, comments=True)
    while words and (re.match(r"[A-Z_]+=", words[0]) or words[0] in {"export", "for", "do"}):
        words.pop(0)
    if not words:
        return
    if words[0] in PROGRAMS:
        check_program(words, whole=whole)
    if words[0] == "make":
        unknown = [
            word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*", word) and word not in targets()
        ]
        if unknown:
            raise DocsError(f"there is no target {unknown[0]!r}")
        selected = [word.removeprefix("T=") for word in words[1:] if word.startswith("T=")]
        if not all((ROOT / name).exists() for name in selected if whole):
            raise DocsError(f"there is no {selected[0]}")
    if (
        words[:2] == ["python", "-m"]
        and importlib.util.find_spec(words[2].split(".")[0])
        and not module_exists(words[2])
    ):
        raise DocsError(f"there is no module {words[2]}")


def module_exists(name: str) -> bool:
    """Return whether a module is in the repository; infra's have an environment of their own."""
    path = name.replace(".", "/")
    places = (ROOT, *(each.parent for each in ROOT.glob("*/src/airbridge")))
    return any((place / f"{path}.py").is_file() or (place / path).is_dir() for place in places)


def split(line: str) -> list[str]:
    """Return the commands of a shell line, without pipes, redirections and substitutions."""
    unquoted = re.sub(r"\$\((.*?)\)", r" ; \1 ; X", line)
    parts = re.split(r" *(?:;|&&|\|\|?) *", unquoted) if "'" not in unquoted else [unquoted.split(" | ")[0]]
    return [re.sub(r" *\d?>>? *\S+.*$", "", part).strip() for part in parts if part.strip()]


def console(page: Page) -> Iterator[str]:
    """Yield the commands of console blocks."""
    for block in page.blocks("console"):
        yield from (line[2:] for line in block.splitlines() if line.startswith("$ "))


def scripts(page: Page) -> Iterator[str]:
    """Yield the lines of scripts that begin with one of the programs."""
    for block in page.blocks("bash", "sh"):
        joined = block.replace("\\\n", " ")
        for line in joined.splitlines():
            yield from re.findall(rf"(?:^|\$\(|do |; )((?:{'|'.join(PROGRAMS)}) [^;|)]*)", line.strip())


def refused(lines: Iterator[str], *, whole: bool) -> list[str]:
    """Return the commands that would not be accepted, each with the reason."""
    found = []
    for line in lines:
        for part in split(line):
            try:
                check(part, whole=whole)
            except DocsError as error:
                found.append(f"{part}: {error}")
            except ValueError:
                continue  # an unclosed quote: an excerpt of a longer command
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_console_commands_are_accepted(page: Page) -> None:
    """Each command of a console block parses: the command, its options and its arguments exist."""
    assert refused(console(page), whole=True) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_are_accepted(page: Page) -> None:
    """The commands in scripts exist, and so do their options."""
    assert refused(scripts(page), whole=False) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_inline_commands_exist(page: Page) -> None:
    """Inline code that begins with a command names one that exists, with options that exist."""
    mentioned = (found[1] for code in page.inline if (found := INLINE.fullmatch(code)))
    assert refused(mentioned, whole=False) == []


@pytest.mark.parametrize(
    "line",
    [
        "airbridge tokens list",
        "airbridge token list --nonsense",
        "airbridge worker drain",
        "airbridge-ci promote a b c --url x --token-file y",
        "make nothing-of-this-name",
        "make test T=tests/unit/nowhere",
        "python -m airbridge.core.nothing",
    ],
)
def test_wrong_command_is_found(line: str) -> None:
    """The check notices commands, options, arguments, targets and modules that are not there."""
    if line == "airbridge worker drain":  # a missing argument is an abbreviation, not an error
        assert refused(iter([line]), whole=True) == []
    else:
        assert refused(iter([line]), whole=True) != []


def leaves(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, ...]]:
    """Yield the path of every command."""
    yield path
    if isinstance(command, click.Group):
        for name, each in command.commands.items():
            yield from leaves((*path, name), each)


@pytest.mark.parametrize(
    "path",
    [path for program, command in PROGRAMS.items() for path in leaves((program,), command)],
    ids=" ".join,
)
def test_help_is_printed(path: tuple[str, ...]) -> None:
    """`--help` of every command exits with 0."""
    result = CliRunner().invoke(PROGRAMS[path[0]], [*path[1:], "--help"], prog_name=path[0])
    assert (result.exit_code, "Usage" in result.output) == (0, True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_exist(page: Page) -> None:
    """Settings that a page names are settings of the control plane or of the worker."""
    named = {name for code in page.inline for name in re.findall(r"^\[airbridge\] ([a-z_]+)", code)}
    assert named - set(OPTIONS) == set()
    assigned = {name for code in page.inline for name in re.findall(r"^(task_[a-z]+|join_method) ?=", code)}
    assert assigned - set(WorkerSettings.model_fields) == set()
    variables = set(re.findall(rf"{ENV_PREFIX}([A-Z_]+)", page.text))
    assert {name.lower() for name in variables} - set(WorkerSettings.model_fields) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_parse(page: Page) -> None:
    """TOML, JSON and Python in the docs parse; what Python imports from AirBridge exists, and so do classpaths."""
    for block in page.blocks("toml"):
        tomllib.loads(block)
    for block in page.blocks("json"):
        json.loads(block)
        for classpath in re.findall(r'"classpath": "([\w.]+)"', block):
            module, _, name = classpath.rpartition(".")
            assert hasattr(importlib.import_module(module), name)
    for block in page.blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("airbridge"):
                module = importlib.import_module(node.module or "")
                assert [each.name for each in node.names if not hasattr(module, each.name)] == []
