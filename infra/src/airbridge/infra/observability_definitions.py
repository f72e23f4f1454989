"""Alarms and charts, read from `observability.json`, which the control plane's own definition makes.

Values that depend on the stack are placeholders in braces (`{queue}`); `filled` puts them in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

# Scope of an alarm: one for the platform, a region or a pool.
CONTROL_PLANE, REGION, POOL = "control_plane", "region", "pool"

Values = Mapping[str, str]


@dataclass(frozen=True)
class AlarmDefinition:
    """An alarm. Of several `series` of its metric, the sum is looked at."""

    name: str
    description: str
    scope: str
    namespace: str
    metric: str
    series: Sequence[Values]
    statistic: str
    comparison: str
    threshold: float
    period_seconds: int
    periods: int
    missing: str

    def dimensions(self, values: Values) -> list[dict[str, str]]:
        """The dimensions of each series, filled."""
        return [filled(one, values) for one in self.series]


@dataclass(frozen=True)
class PanelDefinition:
    """A chart, its lines once for each `each` (a service, a pool), or once if that is empty."""

    title: str
    each: str
    lines: Sequence[Mapping[str, Any]]


def alarms(*scopes: str) -> Iterator[AlarmDefinition]:
    """Yield the alarms of these scopes."""
    return (alarm for alarm in _read()[0] if alarm.scope in scopes)


def panels() -> Sequence[PanelDefinition]:
    """Return the charts."""
    return _read()[1]


def namespace() -> str:
    """The namespace of AirBridge's own metrics."""
    return str(_document()["namespace"])


def own(alarm: AlarmDefinition) -> bool:
    """Return whether gateways publish the alarm's metric: such metrics are in the home region."""
    return alarm.metric in _document()["published"]


def filled(texts: Values, values: Values) -> dict[str, str]:
    """Put the values in; a KeyError names one that is not known."""
    return {name: text.format_map(values) for name, text in texts.items()}


@cache
def _document() -> dict[str, Any]:
    text = resources.files("airbridge.infra").joinpath("observability.json").read_text()
    document: dict[str, Any] = json.loads(text)
    return document


@cache
def _read() -> tuple[tuple[AlarmDefinition, ...], tuple[PanelDefinition, ...]]:
    document = _document()
    return (
        tuple(AlarmDefinition(**alarm) for alarm in document["alarms"]),
        tuple(PanelDefinition(**panel) for panel in document["panels"]),
    )
