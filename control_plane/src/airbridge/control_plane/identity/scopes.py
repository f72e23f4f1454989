"""Scopes of tokens: ``<resource>:<action>[ <name pattern>][ <attribute>=<pattern>]...``.

Examples: ``work:claim queue=eu-*``, ``connections:read eu_*``, ``variables:read``, ``dags:push team-a``.
An omitted part allows any value; ``*`` is the wildcard. Everything that no scope allows is denied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Self

from airbridge.control_plane.exceptions import InvalidScope

_ACTION = re.compile(r"[a-z][a-z_-]{0,40}:(?:[a-z][a-z_-]{0,40}|\*)")
_PATTERN = re.compile(r"[A-Za-z0-9_.:/*@~+-]{1,250}")
_ATTRIBUTE = re.compile(r"[a-z][a-z_]{0,40}")


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope, parsed."""

    action: str
    name: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a scope. Raises `InvalidScope` naming the malformed part."""
        action, *parts = text.split()
        if not _ACTION.fullmatch(action):
            raise InvalidScope(f"scope {text!r}: {action!r} should be <resource>:<action>, like work:claim")
        name: str | None = None
        attributes: dict[str, str] = {}
        for part in parts:
            key, equals, value = part.partition("=")
            if equals and _ATTRIBUTE.fullmatch(key) and _PATTERN.fullmatch(value) and key not in attributes:
                attributes[key] = value
            elif not equals and name is None and _PATTERN.fullmatch(part):
                name = part
            else:
                raise InvalidScope(
                    f"scope {text!r}: {part!r} should be one name pattern or <attribute>=<pattern>"
                )
        return cls(action, name, attributes)

    def allows(self, action: str, name: str | None, attributes: Mapping[str, str]) -> bool:
        """Return whether this scope covers `action` on `name` with these attributes."""
        if not fnmatchcase(action, self.action):
            return False
        if self.name is not None and (name is None or not fnmatchcase(name, self.name)):
            return False
        return all(
            key in attributes and fnmatchcase(attributes[key], pattern)
            for key, pattern in self.attributes.items()
        )

    def covers(self, other: Scope) -> bool:
        """Return whether everything that `other` allows is allowed by this scope too (a safe approximation).

        A pattern of `other` is read as a literal: ``eu-*`` covers ``eu-west-*``, and never the reverse.
        """
        return self.allows(other.action, other.name, other.attributes)


@dataclass(frozen=True, slots=True)
class Scopes:
    """All scopes of one token."""

    scopes: tuple[Scope, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Parse scopes. Raises `InvalidScope`, also for blank ones."""
        parsed = []
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InvalidScope(f"{text!r} is not a scope; expected text like 'work:claim queue=eu-*'")
            parsed.append(Scope.parse(text))
        return cls(tuple(parsed))

    def allow(self, action: str, name: str | None = None, **attributes: str) -> bool:
        """Return whether any scope covers `action` on `name` with these attributes."""
        return any(scope.allows(action, name, attributes) for scope in self.scopes)

    def mention(self, action: str) -> bool:
        """Return whether any scope allows `action` on at least some names."""
        return any(fnmatchcase(action, scope.action) for scope in self.scopes)

    def cover(self, others: Scopes) -> bool:
        """Return whether a holder of these scopes may grant `others`."""
        return all(any(mine.covers(other) for mine in self.scopes) for other in others.scopes)
