"""Trigger classes that a task may have the triggerer run: an inventory of installed code, made without importing any.

Airflow's triggerer imports whatever path a deferral names and calls it with the deferral's kwargs. Here a path has to be
in an inventory: the trigger classes of the installed Airflow and its providers, as their distributions' files define
them, except for those that load code by a name among their arguments, start processes, or read and change files: in the
control plane those would be its own. Others are added by `[airbridge] trigger_classes`.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import structlog

from airbridge.core.violations import Place, Violation

log = structlog.get_logger()

# The length of Airflow's column.
LONGEST_CLASSPATH: Final = 1000
CLASSPATH: Final = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+", re.ASCII)

_DISTRIBUTIONS: Final = ("apache-airflow-core", "apache-airflow-providers-")
_MODULE: Final = re.compile(r"airflow/(?:triggers|providers/(?:\w+/)+triggers)/(?:\w+/)*\w+\.py", re.ASCII)
# Names whose use in a trigger's class, or at the top level of its module, keeps the class out of the
# inventory.
_HAZARDS: Final = frozenset(
    {
        *("import_string", "import_module", "importlib", "__import__", "eval", "exec"),
        *("pickle", "cloudpickle", "dill", "subprocess", "system", "popen"),
        *("remove", "unlink", "rmtree", "rename", "open", "glob", "walk", "scandir", "listdir"),
    }
)


@dataclass(frozen=True, slots=True)
class TriggerClasses:
    """Paths of the classes that a deferral may name."""

    allowed: frozenset[str]
    #: Whether the trigger runs on a worker, in the sandbox of its task's code: then it may be any class.
    elsewhere: Callable[[], bool] = lambda: False

    @classmethod
    def installed(cls, more: Collection[str] = ()) -> Self:
        """Take the inventory of this environment's distributions, and `more` paths."""
        found = {path for file in _files() for path in classes_of(file.read_text("utf-8"), file.module)}
        log.info("trigger_classes.found", count=len(found), added=sorted(more))
        return cls(frozenset({*found, *more}))

    def check(self, classpath: str, place: Place) -> None:
        """Check a deferral's class. Raises `Violation`."""
        if classpath not in self.allowed and not (CLASSPATH.fullmatch(classpath) and self.elsewhere()):
            raise Violation(
                place,
                f"the trigger class {classpath[:150]!r}",
                "trigger classes of the installed Airflow providers that load no code and touch no files, "
                "and those of [airbridge] trigger_classes",
            )


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    module: str

    def read_text(self, encoding: str) -> str:
        return self.path.read_text(encoding)


def _files() -> Iterator[_File]:
    """Yield the modules that define triggers, by the file lists of the installed distributions."""
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if not name.startswith(_DISTRIBUTIONS):
            continue
        for file in distribution.files or ():
            if _MODULE.fullmatch(file.as_posix()):
                module = file.as_posix().removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                yield _File(Path(str(distribution.locate_file(file))), module)


def classes_of(source: str, module: str) -> Iterator[str]:
    """Yield the paths of the trigger classes that a module's source defines and that are no hazard."""
    tree = ast.parse(source)
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef)]
    around = [each for each in tree.body if not isinstance(each, ast.ClassDef)]
    if _HAZARDS & {name for each in around if not _is_import(each) for name in _names(each)}:
        return
    imported = {alias: name for each in around for alias, name in _imports(each)}
    hazards = {
        each.name for each in classes if _HAZARDS & {imported.get(name, name) for name in _names(each)}
    }
    for each in classes:
        bases = [_last_name(base) for base in each.bases]
        if (
            each.name.endswith("Trigger")
            and not each.name.startswith("Base")
            and any(base.endswith("Trigger") for base in bases)
        ):
            if each.name in hazards or hazards & {*bases}:
                hazards.add(each.name)  # a class that derives from this one comes after it
                continue
            yield f"{module}.{each.name}"


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (part for _, name in _imports(node) for part in name.split("."))


def _is_import(tree: ast.AST) -> bool:
    return isinstance(tree, ast.Import | ast.ImportFrom)


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what import statements bind: the local name, and the name of what it stands for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((each.asname or each.name, each.name) for each in node.names)


def _last_name(base: ast.expr) -> str:
    if isinstance(base, ast.Attribute):
        return base.attr
    return base.id if isinstance(base, ast.Name) else ""


# --- What a trigger's kwargs make it reach ----------------------------------------------------------

_DAG_KEYS: Final = frozenset({"dag_id", "external_dag_id"})
_OWN_AIRFLOW: Final = "airflow.providers.standard."


def connections(kwargs: Mapping[str, Any], place: Place) -> Iterator[str]:
    """Yield the connections that a trigger's kwargs name: the triggerer would give it any. Raises `Violation`.

    A key that is `conn_id` or ends with `_conn_id` names one, wherever it stands.
    """
    yield from _named(kwargs, place, lambda key: key == "conn_id" or key.endswith("_conn_id"))


def dags(classpath: str, kwargs: Mapping[str, Any], place: Place) -> Iterator[str]:
    """Yield the DAGs of this Airflow whose runs a trigger's kwargs name. Raises `Violation`.

    In other providers such a key names a DAG of another Airflow.
    """
    if classpath.startswith(_OWN_AIRFLOW):
        yield from _named(kwargs, place, _DAG_KEYS.__contains__)


def _named(kwargs: Any, place: Place, wanted: Any) -> Iterator[str]:
    for key, value, where in _pairs(kwargs, place):
        if wanted(key) and value is not None:
            if not isinstance(value, str):
                raise Violation(where, f"a {type(value).__name__}", "the id as text")
            yield value


def _pairs(value: Any, place: Place) -> Iterator[tuple[str, Any, Place]]:
    members: Iterable[tuple[Any, Place]] = ()
    if isinstance(value, Mapping):
        yield from ((key, each, place.key(key)) for key, each in value.items())
        members = [(each, place.key(key)) for key, each in value.items()]
    elif isinstance(value, list):
        members = [(each, place.index(index)) for index, each in enumerate(value)]
    for each, where in members:
        yield from _pairs(each, where)
