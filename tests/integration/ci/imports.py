"""Imports between installed distributions, as their source has them: at the top, in functions, and by name in a string."""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from functools import cached_property
from pathlib import Path

_DOTTED = re.compile(r"\.?[a-z_]\w*(\.[A-Za-z_]\w*)+")


@dataclass(frozen=True)
class Installed:
    """Distributions of a site-packages folder; `names` are those that count."""

    folder: Path
    names: frozenset[str]

    @cached_property
    def modules(self) -> dict[str, tuple[Path, str]]:
        """File and distribution of each module."""
        found: dict[str, tuple[Path, str]] = {}
        for record in self.folder.glob("*.dist-info/RECORD"):
            headers = HeaderParser().parsestr((record.parent / "METADATA").read_text(encoding="utf-8"))
            name = re.sub(r"[-_.]+", "-", headers["Name"]).lower()
            if name in self.names:
                for row in csv.reader(record.read_text(encoding="utf-8").splitlines()):
                    if (module := _module(row[0])) and (self.folder / row[0]).is_file():
                        found.setdefault(module, (self.folder / row[0], name))
        return found

    def add(self, name: str, source: Path) -> None:
        """Add a distribution that is installed from its sources."""
        for file in source.rglob("*.py"):
            if module := _module(str(file.relative_to(source))):
                self.modules[module] = (file, name)

    def reached(self, roots: Iterable[str]) -> set[str]:
        """Return the distributions that the modules of `roots`, packages with all below them, reach."""
        known = self.modules
        beginnings = tuple(roots)
        todo = [each for each in known if any(each == b or each.startswith(f"{b}.") for b in beginnings)]
        seen: set[str] = set()
        while todo:
            module = todo.pop()
            if module in seen:
                continue
            seen.add(module)
            parts = module.split(".")
            todo += [p for n in range(1, len(parts)) if (p := ".".join(parts[:n])) in known]
            todo += [found for each in _imports(module, known[module][0]) if (found := self._known(each))]
        return {known[module][1] for module in seen}

    def _known(self, name: str) -> str:
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        return name


def _module(path: str) -> str:
    parts = path.split("/")
    if not parts[-1].endswith(".py") and ".so" not in parts[-1]:
        return ""
    parts[-1] = parts[-1].split(".")[0]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(module: str, file: Path) -> Iterator[str]:
    if file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    try:
        todo: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8", errors="replace"))]
    except SyntaxError:
        return  # templates, and tests of parsers
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        yield from _named(node, package)
        todo += ast.iter_child_nodes(node)


def _named(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (each.name for each in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            up = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*up, base] if base else up)
        yield base
        yield from (f"{base}.{each.name}" for each in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
        yield node.value.lstrip(".")
