"""Mutation operators: every small fault that can be put into a module, each as a replacement of a piece of its text."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

Key = tuple[str, str, str, str, str]
"""Module, function, text of the line, operator and change."""

Enums = Mapping[str, tuple[str, ...]]
"""Members of each enum by the name of its class, in order."""

COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}
CALLEES: Final = {"min": "max", "max": "min", "any": "all", "all": "any", "and_": "or_", "or_": "and_"}
CONDITIONS: Final = frozenset({"where", "and_", "or_"})
"""SQL functions whose arguments are conditions that can each be left out."""
CLAUSES: Final = frozenset({"order_by", "limit", "where", "distinct", "with_for_update", "execution_options"})
"""SQL methods that can be left out of a chain of calls."""
LOGGERS: Final = frozenset({"log", "_log", "logger"})


@dataclass(frozen=True, slots=True)
class Mutant:
    """A module with one fault in it."""

    target: str
    operator: str
    function: str
    """Qualified name of the enclosing function or class; empty at module level."""
    line: int
    lines: tuple[int, int]
    """First and last line of the enclosing statement, or of a compound statement's head."""
    text: str
    """The line as it stands in the source, stripped."""
    before: str
    after: str
    source: str
    """The whole module's text with the fault in it."""
    number: int = 1
    """Of those with the same text, operator and change."""

    @property
    def key(self) -> Key:
        """Identity that survives unrelated edits: it holds no line number."""
        change = f"{self.before} -> {self.after}"
        if self.number > 1:
            change = f"{change} ({self.number})"
        return (self.target, self.function, self.text, self.operator, change)

    @property
    def at_import(self) -> bool:
        """Return whether its line runs when the module is imported, for no test in particular."""
        return not self.function or self.function.rpartition(".")[2][:1].isupper()


@dataclass(frozen=True, slots=True)
class _Change:
    node: ast.AST
    operator: str
    after: str


def mutants(target: str, source: str, enums: Enums) -> list[Mutant]:
    """Return all mutants of a module in the order of its text."""
    tree = ast.parse(source)
    finder = _Finder(enums)
    finder.visit(tree)
    text = _Text(source)
    made = [_mutant(target, text, change, where) for change, where in finder.found]
    unique = {each.source: each for each in made if each.source != source and _compiles(each.source)}
    return list(_numbered(unique.values()))


def _numbered(found: Iterable[Mutant]) -> Iterator[Mutant]:
    """Number those that make the same change on the same line, such as two arguments that are True."""
    seen: Counter[Key] = Counter()
    for each in found:
        seen[each.key] += 1
        yield replace(each, number=seen[each.key])


def enums_in(sources: Mapping[str, str] | list[str]) -> dict[str, tuple[str, ...]]:
    """Return the members of every enum that these sources define."""
    texts = sources.values() if isinstance(sources, Mapping) else sources
    found: dict[str, tuple[str, ...]] = {}
    for text in texts:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and any(_is_enum(base) for base in node.bases):
                found[node.name] = tuple(_members(node))
    return found


def _is_enum(base: ast.expr) -> bool:
    return ast.unparse(base).rpartition(".")[2] in {"Enum", "StrEnum", "IntEnum"}


def _members(node: ast.ClassDef) -> Iterator[str]:
    for each in node.body:
        if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name):
            yield each.targets[0].id


class _Text:
    """A module's text, by the byte offsets that `ast` counts in."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._encoded = source.encode()
        self._starts = [0]
        for line in self._encoded.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def of(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._encoded[start:end].decode()

    def line(self, number: int) -> str:
        return self._encoded[self._starts[number - 1] : self._starts[number]].decode().strip()

    def with_(self, node: ast.AST, after: str) -> str:
        start, end = self._span(node)
        return (self._encoded[:start] + after.encode() + self._encoded[end:]).decode()

    def _span(self, node: ast.AST) -> tuple[int, int]:
        start = self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return start, end


@dataclass(frozen=True, slots=True)
class _Where:
    function: str
    lines: tuple[int, int]


def _mutant(target: str, text: _Text, change: _Change, where: _Where) -> Mutant:
    line: int = change.node.lineno  # type: ignore[attr-defined]
    return Mutant(
        target=target,
        operator=change.operator,
        function=where.function,
        line=line,
        lines=where.lines,
        text=text.line(line),
        before=" ".join(text.of(change.node).split()),
        after=change.after,
        source=text.with_(change.node, change.after),
    )


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except SyntaxError:
        return False
    return True


class _Finder(ast.NodeVisitor):
    """Collects changes, and where each stands."""

    def __init__(self, enums: Enums) -> None:
        self.found: list[tuple[_Change, _Where]] = []
        self._enums = enums
        self._names: list[str] = []
        self._lines = (1, 1)

    def visit(self, node: ast.AST) -> None:
        if _is_left_alone(node) or (
            isinstance(node, ast.Assign | ast.AnnAssign) and _is_tuning(node, self._names)
        ):
            return
        before = self._lines
        if isinstance(node, ast.stmt):
            self._lines = _head(node)
        where = _Where(".".join(self._names), self._lines)
        for change in _changes(node, self._enums):
            self.found.append((change, where))
        self._descend(node)
        self._lines = before

    def _descend(self, node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self._names.append(node.name)
            self._visit_all(node, _skipped_fields(node))
            self._names.pop()
        else:
            self._visit_all(node, _skipped_fields(node))

    def _visit_all(self, node: ast.AST, skipped: frozenset[str]) -> None:
        for name, value in ast.iter_fields(node):
            if name in skipped:
                continue
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST) and not (isinstance(node, ast.arguments) and _is_duration(each)):
                    self.visit(each)


def _is_tuning(node: ast.Assign | ast.AnnAssign, names: list[str]) -> bool:
    """Return whether a named number of a module is a duration or a size: a test that repeats it would prove nothing."""
    value = node.value
    number = value.value if isinstance(value, ast.Constant) else None
    return not names and isinstance(number, int | float) and (isinstance(number, float) or abs(number) >= 10)


def _is_duration(node: ast.AST) -> bool:
    """Return whether a parameter's default is a duration: tuning, as a module's named numbers are."""
    return isinstance(node, ast.Constant) and isinstance(node.value, float)


def _head(node: ast.stmt) -> tuple[int, int]:
    """Return the lines of a statement without the block that it heads; all of a function's, as its defaults are used there."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node.lineno, node.end_lineno or node.lineno
    body = getattr(node, "body", None)
    last = node.end_lineno or node.lineno
    if isinstance(body, list) and body:
        last = max(node.lineno, body[0].lineno - 1)
    return node.lineno, last


def _skipped_fields(node: ast.AST) -> frozenset[str]:
    if isinstance(node, ast.AnnAssign | ast.arg):
        return frozenset({"annotation"})
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return frozenset({"returns", "decorator_list"})
    if isinstance(node, ast.ClassDef):
        return frozenset({"bases", "decorator_list", "keywords"})
    return frozenset()


def _is_left_alone(node: ast.AST) -> bool:
    """Return whether faults here are of no interest: messages for people, log calls, types, the list of public names."""
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _is_log_call(node.value)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return _is_alias_or_public_names(node)
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def _is_alias_or_public_names(node: ast.Assign | ast.AnnAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    value = node.value
    return any(isinstance(each, ast.Name) and each.id == "__all__" for each in targets) or (
        isinstance(value, ast.Subscript)
        and isinstance(value.slice, ast.Tuple | ast.Name)
        and isinstance(value.value, ast.Name)
        and value.value.id[:1].isupper()
    )


def _is_log_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value).rpartition(".")[2] in LOGGERS
    )


# --- The operators ----------------------------------------------------------------------------------


def _changes(node: ast.AST, enums: Enums) -> Iterator[_Change]:
    for operator in _OPERATORS:
        yield from operator(node)
    yield from _other_member(node, enums)


def _compare(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = COMPARISONS.get(type(node.ops[0]))
        if other is not None:
            yield _Change(
                node, "comparison", ast.unparse(ast.Compare(node.left, [other()], node.comparators))
            )


def _boolean(node: ast.AST) -> Iterator[_Change]:
    if not isinstance(node, ast.BoolOp):
        return
    other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    yield _Change(node, "and/or", f"({ast.unparse(ast.BoolOp(other, node.values))})")
    for index in range(len(node.values)):
        rest = [value for number, value in enumerate(node.values) if number != index]
        left = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        yield _Change(node, "operand dropped", f"({ast.unparse(left)})")


def _negation(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _Change(node, "not removed", f"({ast.unparse(node.operand)})")
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield _Change(node, "sign removed", ast.unparse(node.operand))
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(
        node.test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant
    ):
        yield _Change(node.test, "condition negated", f"(not ({ast.unparse(node.test)}))")


def _constant(node: ast.AST) -> Iterator[_Change]:
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield _Change(node, "boolean", repr(not node.value))
    elif isinstance(node.value, int | float):
        yield _Change(node, "constant", repr(node.value + 1))
        if node.value:
            yield _Change(node, "constant", repr(node.value - 1))


def _arithmetic(node: ast.AST) -> Iterator[_Change]:
    if not isinstance(node, ast.BinOp) or _is_text(node.left) or _is_text(node.right):
        return
    other = ARITHMETIC.get(type(node.op))
    if other is not None:
        yield _Change(node, "arithmetic", f"({ast.unparse(ast.BinOp(node.left, other(), node.right))})")
        yield _Change(node, "operand dropped", f"({ast.unparse(node.left)})")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _statement(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        yield _Change(node, "call dropped", "pass")
    elif isinstance(node, ast.Raise):
        yield _Change(node, "raise dropped", "pass")
    elif (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    ) or isinstance(node, ast.AugAssign):
        yield _Change(node, "assignment dropped", "pass")
    elif isinstance(node, ast.Continue):
        yield _Change(node, "loop control", "break")
    elif isinstance(node, ast.Break):
        yield _Change(node, "loop control", "continue")


def _returned(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield _Change(node.value, "return None", "None")


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _called(node: ast.AST) -> Iterator[_Change]:
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Name) and node.func.id in CALLEES:
        yield _Change(node.func, "function swapped", CALLEES[node.func.id])
    name = ast.unparse(node.func).rpartition(".")[2]
    if name in CONDITIONS and len(node.args) > 1:
        yield from _without_each(node, node.args, "condition dropped", _call_with)
    if name in CLAUSES and isinstance(node.func, ast.Attribute):
        yield _Change(node, "clause dropped", ast.unparse(node.func.value))


def _call_with(node: ast.expr, arguments: list[ast.expr]) -> ast.expr:
    assert isinstance(node, ast.Call)
    return ast.Call(node.func, arguments, node.keywords)


def _collection(node: ast.AST) -> Iterator[_Change]:
    """Leave out each member of a collection of attributes, such as the states in a query."""
    if not isinstance(node, ast.Tuple | ast.Set | ast.List):
        return
    if len(node.elts) > 1 and all(isinstance(each, ast.Attribute) for each in node.elts):
        yield from _without_each(node, node.elts, "member dropped", _collection_with)


def _collection_with(node: ast.expr, elements: list[ast.expr]) -> ast.expr:
    return ast.Set(elements) if isinstance(node, ast.Set) else type(node)(elements, ast.Load())


def _without_each(
    node: ast.expr,
    elements: list[ast.expr],
    operator: str,
    remade: Callable[[ast.expr, list[ast.expr]], ast.expr],
) -> Iterator[_Change]:
    for index in range(len(elements)):
        rest = [each for number, each in enumerate(elements) if number != index]
        yield _Change(node, operator, ast.unparse(remade(node, rest)))


def _other_member(node: ast.AST, enums: Enums) -> Iterator[_Change]:
    if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
        return
    members = enums.get(node.value.id, ())
    if node.attr in members and len(members) > 1:
        other = members[(members.index(node.attr) + 1) % len(members)]
        yield _Change(node, "enum member", f"{node.value.id}.{other}")


_OPERATORS: Final = (
    _compare,
    _boolean,
    _negation,
    _constant,
    _arithmetic,
    _statement,
    _returned,
    _called,
    _collection,
)
