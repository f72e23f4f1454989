"""Values that run code where Airflow decodes them, as a hostile task writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def encoded(value: Any) -> Any:
    """Return a dict of JSON values as Airflow's BaseSerialization encodes it."""
    if isinstance(value, dict) and not value.keys() & {"__type", "__classname__"}:
        return {"__type": "dict", "__var": {key: encoded(each) for key, each in value.items()}}
    if isinstance(value, list):
        return [encoded(each) for each in value]
    return value


def code(marker: Path) -> str:
    """Return Python code that leaves `marker` behind."""
    return f"__import__('pathlib').Path({str(marker)!r}).write_text('was here')"


def exception(marker: Path) -> dict[str, Any]:
    """Return an exception of the class `builtins.exec`: `import_string` finds it, and it is called."""
    kwargs = {"exc_cls_name": "builtins.exec", "args": [code(marker)], "kwargs": {}}
    return {"__type": "airflow_exc_ser", "__var": encoded(kwargs)}


def builtin_exception(marker: Path) -> dict[str, Any]:
    """Return the same as an exception of Python's."""
    kwargs = {"exc_cls_name": "exec", "args": [code(marker)], "kwargs": {}}
    return {"__type": "base_exc_ser", "__var": encoded(kwargs)}


def trigger(marker: Path) -> dict[str, Any]:
    """Return a trigger whose class is `subprocess.Popen`."""
    called = {"__type": "tuple", "__var": ["subprocess.Popen", encoded({"args": ["touch", str(marker)]})]}
    return {"__type": "base_trigger", "__var": called}


def twice(inner: dict[str, Any]) -> Any:
    """Return a value that is a plain dict when it is decoded once, and `inner` when it is decoded again."""
    return _escaped(inner)


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {"__type": "dict", "__var": {key: _escaped(each) for key, each in value.items()}}
    return [_escaped(each) for each in value] if isinstance(value, list) else value
