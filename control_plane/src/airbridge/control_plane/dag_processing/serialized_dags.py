"""Check of serialised DAGs before they are stored: api-server, scheduler, triggerer and gateway decode what is stored.

Airflow's decoder (``airflow.serialization.serialized_objects``) imports classes by the names that it finds: those of
exceptions, triggers, params and timetables. It also takes a DAG's word for the file that its source is read from. A
DAG file is parsed by a process that its author controls, so all of that is checked here, wherever in the DAG it stands.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import structlog

from airbridge.control_plane.gateway.validation.triggers import TriggerClasses
from airbridge.core.violations import Place, Violation

log = structlog.get_logger(__name__)

_TYPE, _VAR, _CLASS = "__type", "__var", "__class"
_VERSION: Final = 2
_DEPTH: Final = 100
_NODES: Final = 2_000_000

# Types whose decoding imports nothing of the DAG's choosing; classes that a param names are checked besides.
_INERT: Final = frozenset(
    {
        *("dict", "set", "tuple", "datetime", "timedelta", "timezone", "relativedelta", "arg_not_set"),
        *("param", "xcomref", "operator", "taskgroup", "edgeinfo", "k8s.V1Pod"),
        *("asset", "asset_alias", "asset_any", "asset_all", "asset_ref"),
        *("asset_unique_key", "asset_alias_unique_key"),
    }
)

_PARAM_CLASSES: Final = frozenset(
    {"airflow.sdk.definitions.param.Param", "airflow.models.param.Param", "airflow.sdk.Param"}
)
_LINK_SCHEMES: Final = frozenset({"http", "https", "mailto"})
_REFERENCES: Final = frozenset({"$ref", "$dynamicRef", "$recursiveRef"})
# With an address of its own, a part of a schema makes references within the schema ones to that address.
_ADDRESSES: Final = frozenset({"$id", "id"})
# Of draft 3, whose validator fetches addresses of nested schemas, there is no use.
_DRAFTS: Final = frozenset(
    {
        *(f"http://json-schema.org/draft-0{number}/schema" for number in (4, 6, 7)),
        *(f"https://json-schema.org/draft/{name}/schema" for name in ("2019-09", "2020-12")),
    }
)

# Fields that the scheduler computes with, in loops that a wrong type would end.
_WHOLE: Final = (
    "max_active_tis_per_dag",
    "max_active_tis_per_dagrun",
    "retries",
    "priority_weight",
    "pool_slots",
)
_TEXTS: Final = ("task_id", "trigger_rule", "pool", "queue", "owner", "executor", "map_index_template")
_LARGEST: Final = 2**31 - 1


@dataclass(frozen=True)
class SerializedDagCheck:
    """Check of the classes, files and names in a serialised DAG.

    `is_timetable`, `shadows` and `decode` query Airflow: whether a path is a timetable that it or a plugin registered, whether a key
    of an operator would shadow a method, and whether a DAG can be decoded at all (or an exception is raised).
    """

    triggers: TriggerClasses
    is_timetable: Callable[[str], bool]
    shadows: Callable[[str], bool]
    decode: Callable[[Any], None]

    @classmethod
    def installed(cls, trigger_classes: Collection[str] = ()) -> Self:
        """Return the check of this installation, with `trigger_classes` allowed besides those of providers."""
        from airbridge.control_plane.dag_processing import _airflow

        triggers = TriggerClasses.installed(trigger_classes)
        return cls(triggers, _airflow.is_timetable, _airflow.shadows_method, _airflow.decode)

    def filter(self, result: Any, file: str, bundle: str) -> None:
        """Take out of a `DagFileParsingResult` what is refused, and put the reason among its import errors."""
        refused: list[str] = []
        kept = []
        for dag in result.serialized_dags:
            try:
                self.check(dag.data, file, bundle)
                self.decode(dag)
                kept.append(dag)
            except Violation as violation:
                refused.append(f"DAG {_dag_id(dag.data)!r} is refused: {violation}")
            except Exception as error:  # noqa: BLE001 - what cannot be checked is not stored
                refused.append(f"DAG {_dag_id(dag.data)!r} is refused: it is malformed: {error!r}"[:500])
        result.serialized_dags = kept
        result.fileloc = file
        result.warnings = []  # Airflow's parser reports none
        errors = {
            key: _storable(text) for key, text in (result.import_errors or {}).items() if _is_of(key, file)
        }
        if refused:
            log.warning("dag_processing.refused", file=file, reasons=refused)
            errors[file] = _storable("\n".join(filter(None, (errors.get(file), *refused))))
        result.import_errors = errors

    def check(self, data: Any, file: str, bundle: str) -> None:
        """Check a serialised DAG that came of `file`. Raises `Violation`, and other errors for what is no DAG at all."""
        place = Place("dag")
        if set(data) != {"__version", "dag"} or data["__version"] != _VERSION:
            raise Violation(Place("data"), f"the keys {sorted(data)[:5]}", f"a DAG of version {_VERSION}")
        dag = data["dag"]
        _check_file(dag, file, bundle)
        _check_links(dag.get("owner_links") or {}, place.key("owner_links"))
        _check_names(dag, place)
        for key in dag:
            if self.shadows(key) and key not in _OWN_FIELDS:
                raise Violation(place.key(key), "a key that replaces a method", "fields of a DAG")
        for index, task in enumerate(dag["tasks"]):
            self._check_task(task, place.key("tasks").index(index))
        for each, where, in_schema in _walk(dag, place):
            self._check_one(each, where, in_schema)

    def _check_task(self, task: Any, place: Place) -> None:
        if task.keys() != {_TYPE, _VAR} or task[_TYPE] != "operator":
            raise Violation(place, "something else", "an operator")
        operator = task[_VAR]
        _check_names(operator, place)
        for fields in (operator, operator.get("partial_kwargs") or {}):
            _check_types(fields, place)
        for key in operator:
            if self.shadows(key) and key not in operator["template_fields"]:
                raise Violation(place.key(key), "a key that replaces a method", "fields of an operator")

    def _check_one(self, value: dict[str, Any], place: Place, in_schema: bool) -> None:
        if _TYPE in value:
            self._check_type(value, place)
        if _CLASS in value and value[_CLASS] not in _PARAM_CLASSES:
            raise Violation(place, f"the class {str(value[_CLASS])!r}", "Airflow's Param")
        starts = value.get("start_trigger_args")
        if isinstance(starts, dict) and _may_start_from_trigger(value):
            self._check_trigger(starts.get("trigger_cls"), place.key("start_trigger_args"))
        for watcher in value.get("watchers") or ():
            if isinstance(watcher, dict) and isinstance(watcher.get("trigger"), dict):
                self._check_trigger(watcher["trigger"].get("classpath"), place.key("watchers"))
        if in_schema:
            _check_schema(value, place)

    def _check_type(self, value: dict[str, Any], place: Place) -> None:
        kind = value[_TYPE]
        if isinstance(kind, str) and kind in _INERT:
            return
        if kind == "START_TRIGGER_ARGS":
            return  # decoded as part of an operator alone, where `_check_one` sees it
        if kind == "base_trigger":
            self._check_trigger(_trigger_of(value[_VAR]), place)
        elif not (isinstance(kind, str) and "." in kind and self.is_timetable(kind)):
            found = _named_class(value)
            raise Violation(
                place, f"the type {str(kind)!r}{found}", "values, params, assets and registered timetables"
            )

    def _check_trigger(self, classpath: Any, place: Place) -> None:
        if not isinstance(classpath, str):
            raise Violation(place, f"the trigger class {str(classpath)!r}", "the path of a trigger class")
        self.triggers.check(classpath, place)


_OWN_FIELDS: Final = frozenset({"params", "tags", "timetable", "task_group", "edge_info", "catchup"})


def _walk(dag: dict[str, Any], place: Place) -> Iterator[tuple[dict[str, Any], Place, bool]]:
    """Yield every dict in a DAG, its place, and whether it is part of a param's JSON schema. Raises `Violation`."""
    waiting: list[tuple[Any, Place, bool, int]] = [(dag, place, False, 0)]
    seen = 0
    while waiting:
        value, where, in_schema, depth = waiting.pop()
        seen += 1
        if depth > _DEPTH or seen > _NODES:
            raise Violation(where, "a value that is too deep or too large", f"{_DEPTH} levels")
        if isinstance(value, dict):
            yield value, where, in_schema
            param = _CLASS in value
            for key, each in value.items():
                if isinstance(each, dict | list):
                    schema = in_schema or (param and key == "schema")
                    waiting.append((each, where.key(str(key)), schema, depth + 1))
        elif isinstance(value, list):
            waiting += [
                (each, where.index(index), in_schema, depth + 1)
                for index, each in enumerate(value)
                if isinstance(each, dict | list)
            ]


def _check_schema(value: dict[str, Any], place: Place) -> None:
    """Check that a param's JSON schema, or a part of it, makes a validator fetch nothing: it would fetch files, too."""
    for key in _REFERENCES & value.keys():
        if not str(value[key]).startswith("#"):
            raise Violation(place.key(key), f"{str(value[key])!r}", "references within the schema")
    for key in _ADDRESSES & value.keys():
        # A property may be named so, and has a schema then.
        if isinstance(value[key], str) and not value[key].startswith("#"):
            raise Violation(place.key(key), f"{value[key]!r}", "schemas without an address")
    draft = value.get("$schema")
    if draft is not None and str(draft).removesuffix("#") not in _DRAFTS:
        raise Violation(place.key("$schema"), f"{str(draft)!r}", f"one of {', '.join(sorted(_DRAFTS))}")


def _check_types(fields: dict[str, Any], place: Place) -> None:
    for key in _WHOLE:
        value = fields.get(key)
        if value is not None and (type(value) is not int or abs(value) > _LARGEST):
            raise Violation(place.key(key), f"{str(value)[:80]!r}", "a whole number")
    for key in _TEXTS:
        value = fields.get(key)
        if value is not None and not isinstance(value, str):
            raise Violation(place.key(key), f"{str(value)[:80]!r}", "text")


def _storable(text: str) -> str:
    """Return text without what the database takes in no column."""
    return text.replace("\0", "").encode(errors="replace").decode()


def _check_file(dag: dict[str, Any], file: str, bundle: str) -> None:
    """Check that a DAG's source is the parsed file and is inside the bundle: its text is shown to users."""
    place = Place("dag")
    if not _is_of(dag.get("fileloc"), file):
        raise Violation(place.key("fileloc"), f"{str(dag.get('fileloc'))!r}", "the file that was parsed")
    if not os.path.realpath(file).startswith(os.path.realpath(bundle) + os.sep):
        raise Violation(place.key("fileloc"), f"a link to {os.path.realpath(file)!r}", "files of the bundle")
    relative = dag.get("relative_fileloc")
    if relative is not None and (Path(relative).is_absolute() or ".." in Path(relative).parts):
        raise Violation(place.key("relative_fileloc"), f"{relative!r}", "a path within the bundle")


def _is_of(path: Any, file: str) -> bool:
    """Return whether a path is the file, or a module in it if it is a zip archive."""
    if path == file:
        return True
    return isinstance(path, str) and path.startswith(file + os.sep) and ".." not in Path(path).parts


def _check_names(fields: dict[str, Any], place: Place) -> None:
    for key in fields:
        if key.startswith("__"):
            raise Violation(place, f"the key {key!r}", "names of fields")


def _check_links(links: Any, place: Place) -> None:
    for owner, url in links.items():
        if urlsplit(str(url)).scheme not in _LINK_SCHEMES:
            raise Violation(place.key(str(owner)), f"{str(url)[:80]!r}", "http, https and mailto links")


def _may_start_from_trigger(operator: dict[str, Any]) -> bool:
    """Return whether an operator's `start_trigger_args`, which many classes merely declare, can be used."""
    if not operator.get("_is_mapped"):
        return bool(operator.get("start_from_trigger"))
    expansion = operator.get(operator.get("_expand_input_attr", "expand_input")) or {}
    partial = operator.get("partial_kwargs") or {}
    mapped = expansion.get("value") or {}
    named = "start_from_trigger" in {*partial, *mapped.get(_VAR, ())}
    return bool(operator.get("start_from_trigger")) or named or expansion.get("type") != "dict-of-lists"


def _trigger_of(encoded: Any) -> Any:
    """Return the class path of an encoded trigger: a tuple of it and its kwargs."""
    members = encoded.get(_VAR) if isinstance(encoded, dict) else encoded
    return members[0] if isinstance(members, list) and members else None


def _named_class(value: dict[str, Any]) -> str:
    """Return what class an encoded exception names, for the message."""
    inner = value.get(_VAR)
    inner = inner.get(_VAR, inner) if isinstance(inner, dict) else inner
    name = inner.get("exc_cls_name") if isinstance(inner, dict) else None
    return f" of class {str(name)[:100]!r}" if name else ""


def _dag_id(data: Any) -> str:
    dag = data.get("dag") if isinstance(data, dict) else None
    return str(dag.get("dag_id") if isinstance(dag, dict) else None)[:250]
