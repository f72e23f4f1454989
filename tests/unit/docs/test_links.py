"""Links, anchors, paths and names in the docs refer to things that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tests.unit.docs.pages import ROOT, Page, current, every

PAGES = every()
TOP = "|".join(
    sorted(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
)
MADE = ("dist/", "infra/.local", "infra/cdktf.out", "infra/.venv")
"""Paths that a build or a deployment creates."""
OTHER_NAMES = {"airbridge.local", "airbridge.claims", "airbridge.refusals"}
"""A trust domain and two StatsD metrics, written like modules."""


def problems(page: Page, target: str) -> str | None:
    """Return the reason why a link is broken."""
    file, _, anchor = target.partition("#")
    path = (page.path.parent / file).resolve() if file else page.path
    if not path.exists():
        return f"{page.name}: {target}: no such file"
    if anchor and path.suffix == ".md" and anchor not in Page(path).anchors:
        return f"{page.name}: {target}: no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Page) -> None:
    """Every relative link and image leads to a file in the repository, and every anchor to a heading."""
    relative = [target for target in page.links if not re.match(r"[a-z]+:", target)]
    assert [found for target in relative if (found := problems(page, target))] == []


def test_broken_link_is_found() -> None:
    """The check notices a file and a heading that are not there."""
    page = Page(ROOT / "README.md")
    assert problems(page, "docs/nowhere.md") is not None
    assert problems(page, "docs/index.md#nowhere") is not None
    assert problems(page, "docs/index.md") is None


def test_every_page_is_reachable() -> None:
    """Each page and picture under docs/ can be reached by links from the index."""
    seen: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        if path.suffix == ".md":
            targets = (target.partition("#")[0] for target in Page(path).links)
            waiting += [
                (path.parent / target).resolve() for target in targets if target and ":" not in target
            ]
    files = {path for path in (ROOT / "docs").rglob("*") if path.is_file()}
    assert sorted(str(path.relative_to(ROOT)) for path in files - seen) == []


@pytest.mark.parametrize("page", current(), ids=lambda page: page.name)
def test_named_paths_exist(page: Page) -> None:
    """Inline code that looks like a path of the repository is one."""
    named = {code for code in page.inline if re.fullmatch(rf"({TOP}|\.github|\.ci)/[\w./*-]*", code)}
    missing = [
        name for name in sorted(named) if not name.startswith(MADE) and not list(ROOT.glob(name.rstrip("/")))
    ]
    assert missing == []


@pytest.mark.parametrize("page", current(), ids=lambda page: page.name)
def test_named_modules_exist(page: Page) -> None:
    """Inline code such as `airbridge.core.signing` or `airbridge.executor.EdgeExecutor` names a module or a name in it."""
    named = {code for code in page.inline if re.fullmatch(r"airbridge(\.\w+)+", code)} - OTHER_NAMES
    assert [name for name in sorted(named) if not is_defined(name)] == []


def is_defined(name: str) -> bool:
    """Return whether a dotted name is a module, or a name that its module defines or imports."""
    parts = name.split(".")
    [source] = [ROOT / parts[1] / "src"] if (ROOT / parts[1] / "src").is_dir() else [ROOT]
    path = source.joinpath(*parts)
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    for file in (path.parent.with_suffix(".py"), path.parent / "__init__.py"):
        if file.is_file():
            return bool(re.search(rf"\b{parts[-1]}\b", file.read_text(encoding="utf-8")))
    return False


def symbols(path: Path) -> set[str]:
    """Return the functions, classes and methods of a module."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            found |= {f"{node.name}.{each.name}" for each in inner}
    return found


def test_tour_answers_resolve() -> None:
    """Each newcomer's question is answered by one module and one symbol in it; there are ten or more."""
    text = Page(ROOT / "docs" / "explanation" / "tour.md").text
    rows = re.findall(r"^\| ([^|]+\?) \| \[`([^`]+)`\]\(([^)]+)\) \| `([^`]+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 10
    wrong = []
    for question, shown, link, symbol in rows:
        path = (ROOT / "docs" / "explanation" / link).resolve()
        named = str(path).endswith(f"/src/{shown.replace('.', '/')}.py")
        if not path.is_file() or not named or symbol not in symbols(path):
            wrong.append((question, link, symbol))
    assert wrong == []
