"""Subset of a stack that an emulator supports: the remaining resources and outputs.

A resource is left out if its type is not supported, or if it refers to one that is left out.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_OUTPUT = re.compile(r"\$\{data\.terraform_remote_state\.([\w-]+)\.outputs\.([\w-]+)(?:\.([\w-]+))?\}")
_IN_BRACES = re.compile(r"(data\.[a-z0-9_]+\.[A-Za-z0-9_-]+|\baws_[a-z0-9_]+\.[A-Za-z0-9_-]+)")


@dataclass(frozen=True)
class Subset:
    """Remaining part of a stack, and the addresses that were left out."""

    stack: dict[str, Any]
    left_out: tuple[str, ...]

    @property
    def kept(self) -> int:
        """Number of remaining resources."""
        return sum(len(named) for named in self.stack["resource"].values())


def of(stack: dict[str, Any], supported: Collection[str], state: str) -> Subset:
    """The part of a synthesised stack that has only `supported` resource types; its state is kept in a file, `state`."""
    part = copy.deepcopy(stack)
    part["terraform"]["backend"] = {"local": {"path": state}}
    part.pop("data", None)
    gone = {
        f"{kind}.{name}"
        for kind, named in part["resource"].items()
        for name in named
        if kind not in supported
    }
    gone |= {f"data.{kind}.{name}" for kind, named in stack.get("data", {}).items() for name in named}
    while more := set(_depending(part, gone)):
        gone |= more
    for kind, named in list(part["resource"].items()):
        part["resource"][kind] = {name: one for name, one in named.items() if f"{kind}.{name}" not in gone}
        if not part["resource"][kind]:
            del part["resource"][kind]
    part["output"] = {name: one for name, one in part.get("output", {}).items() if not references(one) & gone}
    return Subset(part, tuple(sorted(address for address in gone if not address.startswith("data."))))


def with_outputs(stack: dict[str, Any], outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A stack with the values of other stacks' outputs in place of references to them; unknown ones stay references."""

    def value(match: re.Match[str]) -> str:
        found = outputs.get(match[1], {}).get(match[2])
        if match[3] is not None:
            found = found.get(match[3]) if isinstance(found, dict) else None
        return found if isinstance(found, str) else match[0]

    filled: dict[str, Any] = json.loads(_OUTPUT.sub(value, json.dumps(stack)))
    return filled


def references(value: Any) -> set[str]:
    """The addresses of every resource and data source that a value refers to, and those it must wait for."""
    text = json.dumps(value)
    found = {match for braces in re.findall(r"\$\{[^}]*\}", text) for match in _IN_BRACES.findall(braces)}
    waits = value.get("depends_on", ()) if isinstance(value, dict) else ()
    return found | set(waits)


def _depending(part: dict[str, Any], gone: set[str]) -> Iterator[str]:
    for kind, named in part["resource"].items():
        for name, one in named.items():
            if f"{kind}.{name}" not in gone and references(one) & gone:
                yield f"{kind}.{name}"
