"""Bodies of the Task Execution API: one strict model for each route that takes one.

`Bodies.check` stands before every call that a worker forwards. What it returns is written anew from what was checked, so
that Airflow reads nothing that was not. Airflow's own models (``airflow.api_fastapi.execution_api.datamodels``) take
more: any value in kwargs, an encrypted string in their place, any state, names and URIs of assets that do not belong together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from airbridge.control_plane.gateway.validation import inert, triggers
from airbridge.control_plane.gateway.validation.triggers import TriggerClasses
from airbridge.control_plane.policy.decisions import AssetRef
from airbridge.core import json_text, task_calls
from airbridge.core.json_text import Bounds
from airbridge.core.violations import Place, Violation


class Route(StrEnum):
    """Kind of a call's body; denials use its name."""

    NONE = "none"
    STATE = "state"
    RENDERED_FIELDS = "rendered_fields"
    SKIP_DOWNSTREAM = "skip_downstream"
    VARIABLE = "variable"
    XCOM = "xcom"
    DAG_RUN = "dag_run"


BOUNDS: Final[Mapping[Route, Bounds]] = {
    Route.NONE: Bounds(0),
    Route.STATE: task_calls.OTHER_BODY,
    Route.RENDERED_FIELDS: task_calls.RENDERED_FIELDS_BODY,
    Route.SKIP_DOWNSTREAM: task_calls.OTHER_BODY,
    Route.VARIABLE: task_calls.OTHER_BODY,
    Route.XCOM: task_calls.XCOM_BODY,
    Route.DAG_RUN: task_calls.OTHER_BODY,
}


@dataclass(frozen=True, slots=True)
class Body:
    """A checked body: its text for Airflow, and what it makes the control plane reach."""

    text: str | None = None
    #: Assets and aliases that it changes.
    assets: tuple[AssetRef, ...] = ()
    #: Connections that a trigger reads.
    connections: tuple[str, ...] = ()
    #: Whether they are read by a worker, whose reads are judged again one by one.
    read_at_edge: bool = False
    #: DAGs whose runs a trigger watches.
    dags: tuple[str, ...] = ()
    #: What `text` encodes.
    value: Any = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Bodies:
    """Checks bodies. Safe for use by many threads."""

    trigger_classes: TriggerClasses
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def with_triggers_at(self, elsewhere: Callable[[], bool]) -> Bodies:
        """Return checks for a task whose triggers may run `elsewhere` than in the control plane."""
        return replace(self, trigger_classes=replace(self.trigger_classes, elsewhere=elsewhere))

    def check(self, route: Route, text: str | None) -> Body:
        """Return the checked body. Raises `Violation`."""
        place = Place(str(route))
        if route is Route.NONE:
            if text:
                raise Violation(place, f"a body of {len(text)} characters", "no body")
            return Body()
        value = json_text.read(text or "", place, BOUNDS[route])
        body = _CHECKS[route](self, value)
        return replace(body, text=json_text.write(value), value=value)

    def _state(self, value: Any) -> Body:
        state = value.get("state") if isinstance(value, dict) else None
        model = _STATES.get(state) if isinstance(state, str) else None
        if model is None:
            raise Violation(Place("state"), f"{state!r}"[:64], ", ".join(sorted(_STATES)))
        parsed = _parse(model, value, Place(""))
        self._check_times(parsed)
        if isinstance(parsed, Deferred):
            return self._deferral(parsed)
        if isinstance(parsed, Succeeded):
            return Body(assets=tuple(_changed(parsed)))
        return Body()

    def _deferral(self, said: Deferred) -> Body:
        kwargs_place = Place("trigger_kwargs")
        self.trigger_classes.check(said.classpath, Place("classpath"))
        inert.check_kwargs(said.trigger_kwargs, kwargs_place)
        inert.check_kwargs(said.next_kwargs, Place("next_kwargs"))
        kwargs = inert.kwargs_of(said.trigger_kwargs)
        connections = tuple(triggers.connections(kwargs, kwargs_place))
        return Body(
            connections=connections,
            read_at_edge=bool(connections) and self.trigger_classes.elsewhere(),
            dags=tuple(triggers.dags(said.classpath, kwargs, kwargs_place)),
        )

    def _check_times(self, said: BaseModel) -> None:
        """Refuse times that the scheduler's arithmetic or the database's columns could not bear."""
        now = self.clock()
        for name in ("end_date", "reschedule_date"):
            at = getattr(said, name, None)
            if at is not None and abs(at - now) > FARTHEST:
                raise Violation(
                    Place(name), f"the time {at.isoformat()}", f"within {FARTHEST.days} days of now"
                )


# Greatest distance of a time from now: a worker's clock may be wrong, and a sensor may reschedule for next year.
FARTHEST: Final = timedelta(days=3650)


# --- Models -----------------------------------------------------------------------------------------


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# Names and URIs of assets: Airflow's columns have 1,500 characters.
Name = Annotated[str, Field(min_length=1, max_length=1500)]
MapIndex = Annotated[str | None, Field(max_length=250)]


class Ended(_Model):
    """A final state that is no success."""

    state: Literal["failed", "skipped", "removed"]
    end_date: AwareDatetime
    rendered_map_index: MapIndex = None


class Retry(_Model):
    """A failure that is to be tried again."""

    state: Literal["up_for_retry"]
    end_date: AwareDatetime
    rendered_map_index: MapIndex = None


class Reschedule(_Model):
    """A sensor that wants to be run again later."""

    state: Literal["up_for_reschedule"]
    end_date: AwareDatetime
    reschedule_date: AwareDatetime


class Deferred(_Model):
    """A deferral. The kwargs are checked by `inert.check_kwargs`."""

    state: Literal["deferred"]
    classpath: Annotated[str, Field(max_length=triggers.LONGEST_CLASSPATH)]
    trigger_kwargs: Any = Field(default_factory=dict)
    trigger_timeout: Annotated[timedelta | None, Field(ge=timedelta(0), le=FARTHEST)] = None
    next_method: Annotated[str, Field(max_length=1000, pattern=r"^[A-Za-z_]\w*$")]
    next_kwargs: Any = Field(default_factory=dict)
    rendered_map_index: MapIndex = None


class AssetProfile(_Model):
    """An asset of the task's outlets: which fields count depends on the type, and the others may not be given."""

    type: Literal["Asset", "AssetNameRef", "AssetUriRef", "AssetAlias"]
    name: Name | None = None
    uri: Name | None = None


class AssetKey(_Model):
    """Both names of an asset."""

    name: Name
    uri: Name


class OutletEvent(_Model):
    """Event that a task reports for one asset that it changed, itself or through an alias."""

    dest_asset_key: AssetKey
    extra: dict[str, Any]
    source_alias_name: Name | None = None


class Succeeded(_Model):
    """A success, with the assets that it changed."""

    state: Literal["success"]
    end_date: AwareDatetime
    task_outlets: Annotated[list[AssetProfile], Field(max_length=1000)] = Field(default_factory=list)
    outlet_events: Annotated[list[OutletEvent], Field(max_length=10_000)] = Field(default_factory=list)
    rendered_map_index: MapIndex = None


class SkipDownstream(_Model):
    """Tasks of the same run that are to be skipped: ids, or pairs of id and map index."""

    tasks: Annotated[list[str | tuple[str, int]], Field(max_length=10_000)]


class VariableValue(_Model):
    """A variable's new value, which is text to the control plane."""

    val: str | None
    description: str | None = None


class TriggeredRun(_Model):
    """A run of a DAG that a task triggers."""

    logical_date: AwareDatetime | None = None
    conf: dict[str, Any] = Field(default_factory=dict)
    reset_dag_run: bool = False


# The states that the Task SDK reports. Airflow's model takes others, and fails the task without a reason.
_STATES: Final[Mapping[str, type[_Model]]] = {
    "success": Succeeded,
    "failed": Ended,
    "skipped": Ended,
    "removed": Ended,
    "deferred": Deferred,
    "up_for_retry": Retry,
    "up_for_reschedule": Reschedule,
}


_Parsed = TypeVar("_Parsed", bound=_Model)


def _parse(model: type[_Parsed], value: Any, place: Place) -> _Parsed:
    """Return `value` as a model. Raises `Violation` that names the first place that is wrong."""
    try:
        # As JSON: strict mode takes times as text there, and nowhere else.
        return model.model_validate_json(json_text.write(value))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the body"
        known = ", ".join(model.model_fields)
        allowed = f"the keys {known}" if first["type"] == "extra_forbidden" else first["msg"]
        raise Violation(Place(f"{place}{'.' if place.name else ''}{where}"), first["type"], allowed) from None


# --- Routes -----------------------------------------------------------------------------------------


def _changed(said: Succeeded) -> Iterator[AssetRef]:
    """Yield what Airflow's `register_asset_changes_in_db` looks up for a success."""
    for index, profile in enumerate(said.task_outlets):
        yield _asset_ref(profile, Place("task_outlets").index(index))
    for index, event in enumerate(said.outlet_events):
        inert.check_plain(event.extra, Place("outlet_events").index(index).key("extra"))
        if event.source_alias_name is not None:
            yield AssetRef(event.dest_asset_key.name, event.dest_asset_key.uri)
            yield AssetRef(event.source_alias_name, alias=True)


_FIELDS: Final = {
    "Asset": (True, True),
    "AssetNameRef": (True, False),
    "AssetUriRef": (False, True),
    "AssetAlias": (True, False),
}


def _asset_ref(profile: AssetProfile, place: Place) -> AssetRef:
    given = (profile.name is not None, profile.uri is not None)
    if given != _FIELDS[profile.type]:
        wanted = " and ".join(
            name for name, has in zip(("name", "uri"), _FIELDS[profile.type], strict=True) if has
        )
        raise Violation(
            place, f"an {profile.type} with name {profile.name!r} and uri {profile.uri!r}", f"{wanted} alone"
        )
    return AssetRef(profile.name, profile.uri, alias=profile.type == "AssetAlias")


def _rendered_fields(_bodies: Bodies, value: Any) -> Body:
    if not isinstance(value, dict):
        raise Violation(Place("rendered_fields"), f"a {type(value).__name__}", "a dict of fields")
    inert.check_plain(value, Place("rendered_fields"))
    return Body()


def _xcom(_bodies: Bodies, value: Any) -> Body:
    inert.check_xcom(value, Place("xcom"))
    return Body()


def _skip_downstream(_bodies: Bodies, value: Any) -> Body:
    _parse(SkipDownstream, value, Place(""))
    return Body()


def _variable(_bodies: Bodies, value: Any) -> Body:
    _parse(VariableValue, value, Place(""))
    return Body()


def _dag_run(_bodies: Bodies, value: Any) -> Body:
    run = _parse(TriggeredRun, value, Place(""))
    if run.logical_date is not None and not 1000 <= run.logical_date.year <= 9000:
        raise Violation(Place("logical_date"), f"the year {run.logical_date.year}", "years from 1000 to 9000")
    inert.check_plain(run.conf, Place("conf"))
    return Body()


_CHECKS: Final[Mapping[Route, Callable[[Bodies, Any], Body]]] = {
    Route.STATE: Bodies._state,  # noqa: SLF001 - this module's own
    Route.RENDERED_FIELDS: _rendered_fields,
    Route.SKIP_DOWNSTREAM: _skip_downstream,
    Route.VARIABLE: _variable,
    Route.XCOM: _xcom,
    Route.DAG_RUN: _dag_run,
}


# --- Queries ----------------------------------------------------------------------------------------

_QUERIES: Final[Mapping[Route, frozenset[str]]] = {Route.XCOM: frozenset({"map_index", "mapped_length"})}


def check_query(route: Route, query: Mapping[str, Sequence[str]]) -> None:
    """Check the query of a call that writes: known keys, once each, whole numbers. Raises `Violation`."""
    place = Place("query")
    known = _QUERIES.get(route, frozenset())
    for key, values in query.items():
        if key not in known:
            raise Violation(place, f"the key {key[:64]!r}", ", ".join(sorted(known)) or "no query")
        number = values[0] if len(values) == 1 else ""
        if not (number.isascii() and number.removeprefix("-").isdigit() and -1 <= int(number[:12]) <= 10**9):
            raise Violation(place.key(key), f"{values!r}"[:64], "one whole number")
        if key == "mapped_length" and int(number) < 0:
            raise Violation(place.key(key), number, "a length")
