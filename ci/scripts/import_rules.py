"""Direction of imports between the packages: ``python ci/scripts/import_rules.py [CHECKOUT]``.

``edge_worker -> core <- executor <- control_plane``; infra and ci import core at most, and core imports none of the others.
Reads the source, so an import counts wherever it stands: in a function, under TYPE_CHECKING, as a literal given to
``import_module``. Prints each import against the direction, and exits with 1 if there is one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

NAMESPACE = "airbridge"

# What each package may import beside itself.
ALLOWED: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "executor": frozenset({"core"}),
    "control_plane": frozenset({"core", "executor"}),
    "edge_worker": frozenset({"core"}),
    "infra": frozenset({"core"}),
    "ci": frozenset({"core"}),
}

IMPORTERS = {"import_module", "find_spec", "__import__"}


def imported_names(tree: ast.Module, package: list[str]) -> Iterator[tuple[int, str]]:
    """Yield line and absolute dotted name of everything that a module in `package` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and (name := _imported_literal(node)):
            yield node.lineno, name


def _imported_literal(call: ast.Call) -> str | None:
    """Return the module that ``import_module("...")`` and its like name."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", None)
    if function in IMPORTERS and call.args and isinstance(call.args[0], ast.Constant):
        return str(call.args[0].value)
    return None


def violations(checkout: Path) -> Iterator[str]:
    """Yield each import against the direction, and each package that is missing or that no rule covers."""
    found = {root.name: root for root in checkout.glob(f"*/src/{NAMESPACE}/[!_]*") if root.is_dir()}
    yield from (
        f"{name}: there is no such package in this checkout" for name in sorted(ALLOWED.keys() - found.keys())
    )
    for name, root in sorted(found.items()):
        if name not in ALLOWED:
            yield f"{root.relative_to(checkout)}: no rule says what this package may import"
            continue
        for path in sorted(root.rglob("*.py")):
            yield from _violations_of(path, name, checkout)


def _violations_of(path: Path, name: str, checkout: Path) -> Iterator[str]:
    package = [NAMESPACE, name, *path.relative_to(checkout / name / "src" / NAMESPACE / name).parts[:-1]]
    for line, imported in imported_names(ast.parse(path.read_text(encoding="utf-8")), package):
        top, _, rest = imported.partition(".")
        target = rest.partition(".")[0]
        if top == NAMESPACE and target != name and target not in ALLOWED[name]:
            yield f"{path.relative_to(checkout)}:{line}: {name} must not import {NAMESPACE}.{target}"


def main() -> int:
    """Check the given checkout, or this one."""
    checkout = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve()
    found = list(violations(checkout))
    print(*found, sep="\n", end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
