"""A checkout in memory: the project's files, released once, with some of them replaced. Notes which files are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.ci.tree import ROOT, STACK, plant_tree, stack

from airbridge.ci.checkout import Checkout, Source
from airbridge.ci.exceptions import CheckoutError
from airbridge.ci.parity.inventory import registry
from airbridge.ci.release import pins


@dataclass(frozen=True)
class Overlay(Checkout):
    """The files `base`, of which `changes` replaces or removes (None) some."""

    base: Mapping[str, Source] = field(default_factory=dict)
    changes: Mapping[str, str | None] = field(default_factory=dict)
    #: Earlier texts of files, as Git would know them.
    earlier: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    reads: set[str] = field(default_factory=set)

    def has(self, path: str) -> bool:
        """Return whether the file is there."""
        self.reads.add(path)
        return self.changes[path] is not None if path in self.changes else path in self.base

    def source(self, path: str) -> Source:
        """A file's text."""
        self.reads.add(path)
        if path in self.changes:
            text = self.changes[path]
            if text is None:
                raise CheckoutError(f"{path}: cannot be read: no such file")
            return Source(path, text)
        if path not in self.base:
            raise CheckoutError(f"{path}: cannot be read: no such file")
        return self.base[path]

    def _paths(self) -> list[str]:
        added = [path for path, text in self.changes.items() if text is not None and path not in self.base]
        return sorted([path for path in self.base if self.changes.get(path, "") is not None] + added)

    def glob(self, pattern: str) -> tuple[str, ...]:
        """Paths that match."""
        expression = registry.glob(pattern)
        return tuple(path for path in self._paths() if expression.fullmatch(path))

    def tracked(self) -> tuple[str, ...]:
        """All paths but those of synthesised stacks."""
        return tuple(path for path in self._paths() if not path.startswith("infra/cdktf.out/"))

    def history(self, path: str) -> tuple[str, ...] | None:
        """Earlier texts of a file."""
        return self.earlier.get(path, ())


def released_project(scratch: Path) -> Overlay:
    """The whole project, its three environments on two releases, of which prod is still on the first."""
    tree = plant_tree(scratch)
    first = tree.release()
    for environment in ("dev", "staging", "prod"):
        tree.pin(environment, tree.release(2))
    base = {}
    paths = {path: ROOT / path for path in Checkout(ROOT).tracked()}
    paths |= {path: scratch / path for path in Checkout(scratch).tracked()}
    paths[STACK] = scratch / STACK
    for path, file in paths.items():
        try:
            base[path] = Source(path, file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    earlier = {pins.release_path(each): (first.text(),) for each in ("dev", "staging", "prod")}
    # The stack was synthesised before the second release.
    base[STACK] = Source(STACK, stack(tree, "staging"))
    return Overlay(scratch, base=base, earlier=earlier)
