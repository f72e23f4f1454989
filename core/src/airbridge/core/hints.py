"""Hints that a DAG author can give for a task: ``executor_config={"airbridge": {...}}``, and `near`, which builds it.

    @task(executor_config=near("s3://sensors/2026", fallback=["us-east-1"], fallback_after=120))
    def summarise(): ...

DAG files import this on the worker too, so it imports nothing of regions, settings or Airflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal, Protocol, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from airbridge.core.exceptions import PlacementError

KEY = "airbridge"
REGION_SCHEME = "region:"
_JDBC = "jdbc:"

#: Longest time that a hint or a setting may give, ten years: dates that are computed with it stay dates.
LONGEST_SECONDS: Final = 3650 * 86_400.0

_UNITS: Final = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}
_AMOUNT: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]+)")


def parse_bytes(value: Any) -> Any:
    """Return an amount of memory or data in bytes. Raises `ValueError` for text that is none; what is no text is returned as it is."""
    if not isinstance(value, str):
        return value
    match = _AMOUNT.fullmatch(value.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"must be a size, such as '4GiB'; its unit is one of {', '.join(_UNITS)}")
    return round(float(match[1]) * _UNITS[match[2]])


def memory_text(amount: int) -> str:
    """Return an amount of memory in words, in the largest unit that it is at least one of."""
    for unit in ("GiB", "MiB", "KiB"):
        if amount >= _UNITS[unit]:
            return f"{amount / _UNITS[unit]:.6g} {unit}"
    return f"{amount} B"


#: Memory in bytes, or as text. At least 16 MiB: a task's process is not smaller.
Memory = Annotated[int, BeforeValidator(parse_bytes), Field(ge=16 * 1024**2, le=2**50)]

#: Processors, in cores.
Cpus = Annotated[float, Field(ge=0.01, le=100_000, allow_inf_nan=False)]


def _hint(value: str) -> str:
    if value.startswith(REGION_SCHEME):
        if value == REGION_SCHEME:
            raise ValueError("names no region; write region:NAME")
        return value
    if not names_data(value):
        raise ValueError("must be data, such as s3://bucket/prefix, or region:NAME")
    return value


def _gib(value: Any) -> Any:
    return parse_bytes(value) / 2**30 if isinstance(value, str) else value


def names_data(value: str) -> bool:
    """Return whether a URI names data: ``s3://bucket``, ``file:///path``, ``jdbc:postgresql://host/database``."""
    if value.startswith(_JDBC):
        # JDBC puts its own scheme before the driver's URL, which need not be a URI.
        driver, colon, rest = value.removeprefix(_JDBC).partition(":")
        return bool(driver and colon and rest.strip("/"))
    try:
        parts = urlsplit(value)
    except ValueError:
        return False
    return bool(parts.scheme and (parts.netloc or (parts.scheme == "file" and parts.path.strip("/"))))


def _queue(value: str) -> str:
    return value.removeprefix(REGION_SCHEME)


def _sequence(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"must be a list; write [{value!r}]")
    return value


NearHints = Annotated[tuple[Annotated[str, AfterValidator(_hint)], ...], BeforeValidator(_sequence)]
Queues = Annotated[tuple[Annotated[str, AfterValidator(_queue)], ...], BeforeValidator(_sequence)]
Limits = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=63)], ...],
    BeforeValidator(_sequence),
    Field(max_length=8),
]
#: In GiB; written as a number of them, or as text with a unit. At most 1 EiB.
Size = Annotated[float, BeforeValidator(_gib), Field(ge=0, le=2**30, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=LONGEST_SECONDS, allow_inf_nan=False)]
Hours = Annotated[float, Field(gt=0, le=LONGEST_SECONDS / 3600, allow_inf_nan=False)]


class _Hints(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Disconnect(_Hints):
    """Policy for a cut, in seconds; a field that is left out has the deployment's value."""

    lost_after: Seconds | None = None
    stop_after: Seconds | None = None
    replace: bool | None = None


class Hints(_Hints):
    """Hints of one task."""

    near: NearHints = ()
    sizes: dict[str, Size] = Field(default_factory=dict)
    hours: Hours | None = None
    pool: str | None = None
    fallback: Queues = ()
    fallback_after: Seconds | None = None
    warm: bool | None = None
    memory: Memory | None = None
    cpus: Cpus | None = None
    limits: Limits = ()
    trigger: Literal["edge", "home"] | None = None
    disconnect: Disconnect = Disconnect()

    @model_validator(mode="after")
    def _sizes_are_of_hints(self) -> Self:
        for data in self.sizes:
            if data not in self.near or data.startswith(REGION_SCHEME):
                known = [hint for hint in self.near if not hint.startswith(REGION_SCHEME)]
                raise ValueError(
                    f"sizes has {data!r}, which is no data of near{suggestion(data, 'data', known)}"
                )
        return self

    @classmethod
    def read(cls, executor_config: Mapping[str, Any] | None) -> Self:
        """Read the hints of a task. Raises `PlacementError` that names the hint and what would be right."""
        given = (executor_config or {}).get(KEY)
        if given is None:
            return cls()
        if not isinstance(given, Mapping):
            raise PlacementError(
                f"executor_config[{KEY!r}] is {given!r}; it must be a mapping, as airbridge.core.near() makes it"
            )
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise PlacementError(_explain(error)) from error


class HasUri(Protocol):
    """An asset, as Airflow's `Asset`."""

    @property
    def uri(self) -> str:
        """The address of the data."""


def near(
    *where: str | HasUri,
    sizes: Mapping[str, float | str] | None = None,
    hours: float | None = None,
    pool: str | None = None,
    fallback: Sequence[str] = (),
    fallback_after: float | None = None,
    warm: bool | None = None,
    memory: str | int | None = None,
    cpus: float | None = None,
    limits: Sequence[str] = (),
    trigger: Literal["edge", "home"] | None = None,
    lost_after: float | None = None,
    stop_after: float | None = None,
    replace: bool | None = None,
) -> dict[str, Any]:
    """Return an ``executor_config`` that places a task near its data.

    :param where: data (``s3://bucket/prefix``, or an `Asset`) or regions (``region:eu-west-1``); earlier ones weigh more
    :param sizes: how much the task reads of each (``{"s3://bucket/prefix": "40GiB"}``), for a catalogue with prices; 1 GiB each
    :param hours: how long the task runs, in hours, for a catalogue with prices of slots; 1
    :param pool: which pool of the region; its ``default`` pool if left out
    :param fallback: ``region`` or ``pool@region`` to go to, in order, when no worker takes the task
    :param fallback_after: seconds to wait before each fallback
    :param warm: false starts the task from a process that has not parsed its DAG file
    :param memory, cpus: of the task with all that it starts (``"4GiB"`` or bytes; cores); it takes as many slots as have that much
    :param limits: names of the catalogue's limits that the task counts towards (``["erp"]``)
    :param trigger: where triggers of the task run when it defers: ``edge``, on a worker of its pool, or ``home``, in Airflow's triggerer
    :param lost_after: seconds without the worker's heartbeat after which the attempt is fenced and failed
    :param stop_after: seconds a cut may last before the worker stops the task itself
    :param replace: false lets no lost attempt be retried
    :raises ValueError: a hint is malformed; the message names what would be right

    ``@task(executor_config=near("s3://sensors/2026", fallback=["us-east-1"], fallback_after=120))``
    """
    return _checked(
        near=[each if isinstance(each, str) else each.uri for each in where] or None,
        sizes=dict(sizes) if sizes else None,
        hours=hours,
        pool=pool,
        fallback=fallback if isinstance(fallback, str) else (list(fallback) or None),
        fallback_after=fallback_after,
        warm=warm,
        memory=memory,
        cpus=cpus,
        limits=limits if isinstance(limits, str) else (list(limits) or None),
        trigger=trigger,
        disconnect=_given(lost_after=lost_after, stop_after=stop_after, replace=replace) or None,
    )


def _checked(**hints: Any) -> dict[str, Any]:
    config = {KEY: _given(**hints)}
    try:
        Hints.read(config)
    except PlacementError as error:
        raise ValueError(str(error)) from error
    return config


def suggestion(wrong: str, what: str, known: Iterable[str]) -> str:
    """Return the end of an error: ``; did you mean 'x'? Known regions: x, y``, or without the question."""
    names = list(known)
    close = get_close_matches(wrong, names, n=1, cutoff=0.5)
    question = f"; did you mean {close[0]!r}? " if close else "; "
    return f"{question}{what}: {', '.join(names) or 'none'}"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    path = "".join(f"[{step!r}]" for step in (KEY, *first["loc"]))
    if first["type"] == "extra_forbidden":
        owner = Disconnect if len(first["loc"]) > 1 else Hints
        name, known = str(first["loc"][-1]), sorted(owner.model_fields)
        return f"executor_config{path} is not known{suggestion(name, 'known hints', known)}"
    what = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        return f"executor_config{path}: {what}"
    return f"executor_config{path} is {first['input']!r}: {what[0].lower()}{what[1:]}"
