"""Readability of Python code in figures: ``python ci/scripts/metrics.py [--check] [--list] [--since REV] [PATH ...]``.

Prints one table over the given trees, which may be any checkout; without a path, over this repository. Source and test files
are counted apart: a file is a test file if it is in a folder named ``tests`` or ``test`` or is named ``test_*.py``,
``*_test.py`` or ``conftest.py``. The limits of `LIMITS` hold for source files; ``--check`` exits with 1 if one is exceeded.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The most (least, for comments) that --check lets pass.
LIMITS = {
    "modules": 15,
    "asking": 2.0,
    "dialect": 1.0,
    "comments": 2.0,
    "function": 49,
}

NOT_SOURCE = {
    ".git", ".venv", "venv", ".tools", ".tox", ".nox", "node_modules", "cdktf.out", ".gen", "__pycache__",
    "build", "dist", "site-packages", ".mypy_cache", ".ruff_cache",
}  # fmt: skip
TEST_FOLDERS = {"tests", "test"}

ASKING = ("What", "How", "Who", "Where", "Whether", "When", "Why", "Which", "Whoever", "Whatever")
FIRST_THREE = ("What", "How", "Who")

# Words of everyday speech that this project used where a technical term exists: "is told" for "receives", "lies in" for
# "is stored in", "mend" for "fix". Some have technical uses too; httpx, structlog and SQLAlchemy stay under 0.4 per 1,000.
_DIALECT = """
    tell tells told telling say says said saying speak speaks spoke spoken hear hears heard hearing
    ask asks asked asking knows knew lie lies lay lain mend mends mended mending
    whoever nobody somebody stranger strangers company farewell goodbye greet greets
    nonsense dare dares forgive forgives forgiven borne
"""
DIALECT = frozenset(_DIALECT.split())

WORD = re.compile(r"[a-z]+(?:'[a-z]+)?", re.IGNORECASE)
# Comments that speak to a tool, not to a reader.
DIRECTIVE = re.compile(
    r"#\s*(!|-\*-|noqa\b|type:\s*ignore|pragma\b|fmt:|ruff:|mypy:|pylint:|pyright:|isort:|nosec\b|zizmor:|/// )"
)
LONGEST_SUBJECT = 72
LONGEST_TEST_NAME = 6


def begins_with(docstring: str, words: Sequence[str]) -> bool:
    """Return whether the first word of a docstring is one of the words."""
    return docstring.split(maxsplit=1)[0].strip(",:") in words


@dataclass
class Counts:
    """Figures of one group of files; ``add`` counts a file in."""

    modules: Counter[Path] = field(default_factory=Counter)
    docstrings: list[str] = field(default_factory=list)
    flagged: list[str] = field(default_factory=list)
    comments: int = 0
    code: int = 0
    functions: list[tuple[int, str]] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)

    def add(self, path: Path, text: str) -> None:
        """Count one file."""
        tree = ast.parse(text)
        if path.parent.parts[-2:] == ("migrations", "versions"):
            return  # History, which is not edited.
        if path.name != "__init__.py":
            self.modules[path.parent] += 1
        self._add_definitions(path, tree)
        self._add_lines(text, _docstring_lines(tree))

    def _add_definitions(self, path: Path, tree: ast.Module) -> None:
        documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        for node in ast.walk(tree):
            if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
                self.docstrings.append(docstring)
                self._flag(f"{path}:{getattr(node, 'lineno', 1)}", docstring)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._add_function(path, node)

    def _flag(self, where: str, docstring: str) -> None:
        """Keep the place and first line of a docstring that begins with a question word or uses dialect, for --list."""
        found = [word for word in WORD.findall(docstring) if word.lower() in DIALECT]
        if begins_with(docstring, ASKING) or found:
            self.flagged.append(f"{where}: {docstring.splitlines()[0]} {found or ''}".rstrip())

    def _add_function(self, path: Path, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        self.functions.append((lines, f"{path}:{node.lineno} {node.name}"))
        if node.name.startswith("test_"):
            self.tests.append(node.name)

    def _add_lines(self, text: str, docstring_lines: set[int]) -> None:
        """Count lines with code, and lines with a comment for readers."""
        code: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                self.comments += not DIRECTIVE.match(token.string)
            elif token.string.strip() and token.type != tokenize.ENDMARKER:
                code.update(range(token.start[0], token.end[0] + 1))
        self.code += len(code - docstring_lines)

    def asking(self, words: Sequence[str]) -> float:
        """Return the percentage of docstrings that begin with one of the words."""
        begun = sum(begins_with(docstring, words) for docstring in self.docstrings)
        return 100 * begun / max(len(self.docstrings), 1)

    def dialect(self) -> tuple[float, Counter[str]]:
        """Return the dialect's words per 1,000 words of docstrings, and the number of each."""
        words = [word.lower() for docstring in self.docstrings for word in WORD.findall(docstring)]
        found = Counter(word for word in words if word in DIALECT)
        return 1000 * found.total() / max(len(words), 1), found

    def comments_per_100(self) -> float:
        """Return comment lines per 100 lines of code; docstrings and blank lines are neither."""
        return 100 * self.comments / max(self.code, 1)

    def long_test_names(self) -> int:
        """Return how many test names have more than six words after ``test_``."""
        return sum(len(name.removeprefix("test_").split("_")) > LONGEST_TEST_NAME for name in self.tests)


def _docstring_lines(tree: ast.Module) -> set[int]:
    """Lines of strings that stand as statements: docstrings, and the strings after an attribute."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def python_files(tree: Path) -> Iterator[Path]:
    """Yield a tree's Python files, without environments, builds and generated code."""
    if tree.is_file():
        yield tree
    for folder, folders, names in os.walk(tree):
        folders[:] = sorted(set(folders) - NOT_SOURCE)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def is_test(path: Path) -> bool:
    """Return whether a file is a test file, by its place or name."""
    named = path.name == "conftest.py" or path.name.startswith("test_") or path.name.endswith("_test.py")
    return named or not TEST_FOLDERS.isdisjoint(path.parts)


def measure(trees: Sequence[Path]) -> tuple[Counts, Counts]:
    """Count the trees' source files and test files."""
    source, tests = Counts(), Counts()
    for tree in trees:
        for path in python_files(tree):
            shown = path.relative_to(tree) if path != tree else Path(path.name)
            try:
                (tests if is_test(shown) else source).add(shown, path.read_text(encoding="utf-8"))
            except (SyntaxError, ValueError, tokenize.TokenError) as problem:
                print(f"skipped {path}: {problem}", file=sys.stderr)
    return source, tests


def subjects(tree: Path, since: str | None) -> list[str]:
    """Return the subjects of a checkout's commits, merges left out; none if the tree is not the top of a checkout."""
    if not (tree / ".git").exists():
        return []
    chosen = [f"{since}.."] if since and _is_revision(tree, since) else [f"--since={since}"] if since else []
    return _git(tree, "log", "--no-merges", "--format=%s", *chosen).stdout.splitlines()


def _is_revision(tree: Path, name: str) -> bool:
    return _git(tree, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").returncode == 0


def _git(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(tree), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def most(counter: Counter[Path] | Counter[str], number: int = 5) -> str:
    """List a counter's largest entries."""
    return ", ".join(f"{count} {name}" for name, count in counter.most_common(number)) or "none"


def rows(source: Counts, tests: Counts) -> Iterator[tuple[str, str, str, str]]:
    """Yield measure, limit, source and tests, line by line."""
    longest = [max((lines for lines, _ in each.functions), default=0) for each in (source, tests)]
    flat = [max(each.modules.values(), default=0) for each in (source, tests)]
    yield "largest flat folder (modules)", f"<= {LIMITS['modules']}", f"{flat[0]}", f"{flat[1]}"
    for title, words, limit in (
        ("docstrings that begin with What/How/Who/Where ...", ASKING, f"< {LIMITS['asking']} %"),
        ("of these with What/How/Who", FIRST_THREE, ""),
    ):
        yield title, limit, f"{source.asking(words):.1f} %", f"{tests.asking(words):.1f} %"
    dialect, test_dialect = (f"{each.dialect()[0]:.1f}" for each in (source, tests))
    yield "dialect per 1,000 docstring words", f"< {LIMITS['dialect']}", dialect, test_dialect
    comments, test_comments = (f"{each.comments_per_100():.1f}" for each in (source, tests))
    yield "comments per 100 code lines", f">= {LIMITS['comments']}", comments, test_comments
    yield "longest function (lines)", f"<= {LIMITS['function']}", f"{longest[0]}", f"{longest[1]}"
    yield "test names of more than six words", "", "", f"{tests.long_test_names()} of {len(tests.tests)}"
    yield "docstrings", "", f"{len(source.docstrings)}", f"{len(tests.docstrings)}"
    yield "lines of code", "", f"{source.code}", f"{tests.code}"


def exceeded(source: Counts) -> list[str]:
    """Return the limits that the source exceeds."""
    longest = max((lines for lines, _ in source.functions), default=0)
    over = {
        "modules": max(source.modules.values(), default=0) > LIMITS["modules"],
        "asking": source.asking(ASKING) >= LIMITS["asking"],
        "dialect": source.dialect()[0] >= LIMITS["dialect"],
        "comments": source.comments_per_100() < LIMITS["comments"],
        "function": longest > LIMITS["function"],
    }
    return [name for name, is_over in over.items() if is_over]


def as_table(lines: Iterator[tuple[str, str, str, str]]) -> str:
    """Format lines as a Markdown table that is readable in a terminal too."""
    table: list[Sequence[str]] = [("measure", "limit", "source", "tests"), *lines]
    widths = [max(len(line[column]) for line in table) for column in range(4)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in table
    )


def details(source: Counts, tests: Counts, commits: Sequence[str]) -> Iterator[str]:
    """Yield where the figures come from."""
    yield f"largest folders: {most(source.modules)}"
    yield f"largest test folders: {most(tests.modules)}"
    yield f"dialect: {most(source.dialect()[1], 12)}"
    if commits:
        long = sum(len(subject) > LONGEST_SUBJECT for subject in commits)
        yield f"commit subjects over {LONGEST_SUBJECT} characters: {long} of {len(commits)}"
    yield "longest functions:"
    yield from (f"  {lines:4} {where}" for lines, where in sorted(source.functions, reverse=True)[:5])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if ``--check`` is given and a limit is exceeded."""
    parser = argparse.ArgumentParser(description="Readability of Python code in figures.")
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT], metavar="PATH")
    parser.add_argument("--check", action="store_true", help="exit with 1 if the source exceeds a limit")
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the docstrings that begin with a question word or use dialect",
    )
    parser.add_argument("--since", metavar="REV", help="count commits after this revision or date only")
    options = parser.parse_args(arguments)
    if missing := [str(path) for path in options.paths if not path.exists()]:
        parser.error(f"no such file or folder: {', '.join(missing)}")
    source, tests = measure(options.paths)
    commits = [subject for path in options.paths for subject in subjects(path, options.since)]
    print(as_table(rows(source, tests)), *details(source, tests, commits), sep="\n")
    if options.list:
        print(*source.flagged, *tests.flagged, sep="\n")
    over = exceeded(source) if options.check else []
    if over:
        print(f"exceeded: {', '.join(over)}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
