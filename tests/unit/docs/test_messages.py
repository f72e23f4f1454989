"""Commands that pages of the dashboard, messages, errors and help name exist."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.docs.pages import ROOT
from tests.unit.docs.test_commands import PROGRAMS, refused

NAMED = "|".join(PROGRAMS)
QUOTED = re.compile(rf"(?<![\w'`])(['`])((?:{NAMED}|make) [a-z][^'`]*)\1")
EXAMPLE = re.compile(rf"(?:Examples?: |;  )((?:{NAMED}) [^;]*)")
MARKED_UP = re.compile(rf"(?:^|[>`'\"])\s*((?:{NAMED}) [a-z][^<`'\"\n]*)", re.MULTILINE)
# A string that is a command; the others are titles of the worker's processes.
WHOLE = re.compile(rf"(?:{NAMED}) (?!supervisor |template |zygote )[a-z][a-z-]* .*")


def sources(*endings: str) -> list[Path]:
    """Return the files of the packages that users see text of."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *(f"*/src/*.{each}" for each in endings)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def strings(file: Path) -> Iterator[str]:
    """Yield the text of every string of a Python file; X for what is inserted."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def named_by(text: str) -> Iterator[str]:
    """Yield the commands that a message names."""
    text = " ".join(text.split())
    yield from (found[2] for found in QUOTED.finditer(text))
    yield from (found[1].strip() for found in EXAMPLE.finditer(text))
    if WHOLE.fullmatch(text):
        yield text.partition(", ")[0]


@pytest.mark.parametrize("file", sources("py"), ids=lambda path: path.name)
def test_commands_in_messages_exist(file: Path) -> None:
    """Commands that errors, hints, help and docstrings name exist, with their options."""
    named = (line for text in strings(file) for line in named_by(text))
    assert refused(named, whole=False) == []


@pytest.mark.parametrize("file", sources("html", "js"), ids=lambda path: path.name)
def test_commands_on_pages_exist(file: Path) -> None:
    """Commands that a page of the dashboard names exist, with their options."""
    named = (found[1] for found in MARKED_UP.finditer(file.read_text(encoding="utf-8")))
    assert refused(named, whole=False) == []


@pytest.mark.parametrize(
    "text",
    [
        "run 'airbridge token create-join' first",
        "see `airbridge tokens list`",
        "Example: airbridge workers",
        "'make infra-nowhere' writes it",
        "<pre><code>airbridge token create-join --region REGION",
    ],
)
def test_wrong_command_is_found(text: str) -> None:
    """The check notices commands and targets that are not there."""
    named = [*named_by(text), *(found[1] for found in MARKED_UP.finditer(text))]
    assert refused(iter(named), whole=False) != []


def test_workers_page_names_commands() -> None:
    """The empty page of workers names the commands that bring the first one."""
    (page,) = (file for file in sources("html") if file.name == "workers_live.html")
    found = [each[1] for each in MARKED_UP.finditer(page.read_text(encoding="utf-8"))]
    assert {" ".join(line.split()[:2]) for line in found} == {"airbridge token", "airbridge-worker run"}
