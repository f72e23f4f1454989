"""GitHub's expressions, as far as the workflows use them.

https://docs.github.com/en/actions/reference/workflows-and-actions/expressions: literals, property and index dereference, ``!``,
comparisons for equality, ``&&`` and ``||``, and the functions below. Anything else is an error, so that a workflow that needs more is noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>-?\d+(?:\.\d+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_-]*)"
    r"|(?P<sign>&&|\|\||==|!=|[!()\[\],.]))"
)
_EMBEDDED: Final = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_STATUS: Final = re.compile(r"\b(?:always|cancelled|failure|success)\s*\(")


class ExpressionError(ValueError):
    """The expression is wrong, or uses what is not known here."""


@dataclass(frozen=True)
class Context:
    """Values by name, such as ``github`` and ``inputs``; whether what is needed failed."""

    values: Mapping[str, Any]
    failed: bool = False

    def fill(self, text: Any) -> str:
        """Return a text with the values of its ``${{ }}``."""
        return _EMBEDDED.sub(lambda found: shown(self.evaluate(found[1])), str(text))

    def holds(self, condition: Any) -> bool:
        """Return whether an ``if`` holds. Without a status function it needs success."""
        if condition is None:
            return not self.failed
        text = shown(condition).strip()
        if (whole := _EMBEDDED.fullmatch(text)) is not None:
            text = whole[1]
        if not _STATUS.search(text) and self.failed:
            return False
        return truth(self.evaluate(text))

    def evaluate(self, text: str) -> Any:
        """Return an expression's value. Raises `ExpressionError`."""
        parser = _Parser(text, self)
        value = parser.either()
        parser.end()
        return value

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Return the functions by name."""
        return {
            "always": lambda: True,
            "cancelled": lambda: False,
            "success": lambda: not self.failed,
            "failure": lambda: self.failed,
            "contains": _contains,
            "format": _format,
            "fromjson": json.loads,
        }


def truth(value: Any) -> bool:
    """Return whether a value counts as true: all but false, 0, the empty text and null."""
    return value not in (False, 0, "", None)


def shown(value: Any) -> str:
    """Return a value as it stands in a text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return left.lower() == right.lower()
    return bool(left == right)


def _contains(where: Any, what: Any) -> bool:
    if isinstance(where, list):
        return any(_equal(each, what) for each in where)
    return shown(what).lower() in shown(where).lower()


def _format(pattern: str, *values: Any) -> str:
    return re.sub(r"\{(\d+)\}", lambda found: shown(values[int(found[1])]), pattern)


@dataclass
class _Parser:
    """Recursive descent, from the loosest operator to the tightest."""

    text: str
    context: Context
    tokens: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        at = 0
        while self.text[at:].strip():
            found = _TOKEN.match(self.text, at)
            if found is None or found.lastgroup is None:
                raise ExpressionError(f"{self.text!r}: {self.text[at:]!r} is not understood")
            self.tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()
        self.tokens.reverse()

    def end(self) -> None:
        if self.tokens:
            raise ExpressionError(f"{self.text!r}: {self.tokens[-1][1]!r} is left over")

    def either(self) -> Any:
        value = self.both()
        while self._takes("||"):
            other = self.both()
            value = value if truth(value) else other
        return value

    def both(self) -> Any:
        value = self.comparison()
        while self._takes("&&"):
            other = self.comparison()
            value = other if truth(value) else value
        return value

    def comparison(self) -> Any:
        value = self.negation()
        while (sign := self._sign()) in ("==", "!="):
            self.tokens.pop()
            value = _equal(value, self.negation()) is (sign == "==")
        return value

    def negation(self) -> Any:
        return not truth(self.negation()) if self._takes("!") else self.reference()

    def reference(self) -> Any:
        value = self.primary()
        while (sign := self._sign()) in (".", "["):
            self.tokens.pop()
            if sign == ".":
                key = self._next("name")
            else:
                key = self.either()
                self._expect("]")
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def primary(self) -> Any:
        if self._takes("("):
            value = self.either()
            self._expect(")")
            return value
        kind, text = self.tokens.pop() if self.tokens else ("", "")
        if kind == "text":
            return text[1:-1].replace("''", "'")
        if kind == "number":
            return float(text)
        if kind != "name":
            raise ExpressionError(f"{self.text!r}: {text!r} is in place of a value")
        if text in {"true", "false", "null"}:
            return json.loads(text)
        return self._call(text) if self._takes("(") else self._value(text)

    def _value(self, name: str) -> Any:
        if name not in self.context.values:
            raise ExpressionError(f"{self.text!r}: there is no {name!r} here")
        return self.context.values[name]

    def _call(self, name: str) -> Any:
        arguments = []
        while not self._takes(")"):
            arguments.append(self.either())
            if self._sign() != ")":
                self._expect(",")
        function = self.context.functions().get(name.lower())
        if function is None:
            raise ExpressionError(f"{self.text!r}: the function {name!r} is not known here")
        return function(*arguments)

    def _sign(self) -> str | None:
        return self.tokens[-1][1] if self.tokens and self.tokens[-1][0] == "sign" else None

    def _takes(self, sign: str) -> bool:
        if self._sign() != sign:
            return False
        self.tokens.pop()
        return True

    def _expect(self, sign: str) -> None:
        if not self._takes(sign):
            raise ExpressionError(f"{self.text!r}: {sign!r} is missing")

    def _next(self, kind: str) -> str:
        if not self.tokens or self.tokens[-1][0] != kind:
            raise ExpressionError(f"{self.text!r}: a {kind} is missing")
        return self.tokens.pop()[1]
