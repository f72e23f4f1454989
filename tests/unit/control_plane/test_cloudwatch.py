"""CloudWatch: what a gateway's log makes known there, and alarms that look at nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.embedded_metrics import extract

from airbridge.control_plane import cloudwatch
from airbridge.control_plane.alarms import ALERTS, AWS_ALARMS, NAMESPACE, SIGNALS, Scope
from airbridge.control_plane.gateway.embedded import LONGEST_ARRAY, Embedded, representatives
from airbridge.control_plane.gateway.metrics import Metrics

DEFINED = cloudwatch.definition()
INFINITE = float("inf")


def embedded() -> tuple[Metrics, Embedded, list[dict[str, Any]]]:
    """A gateway's counters, without a database, and what is said of them."""
    counted, said = Metrics(), []
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return counted, Embedded(counted, "AirBridge", lambda: now, lambda event, **line: said.append(line)), said


def test_a_counter_tells_what_came_since_the_last_line() -> None:
    """So that CloudWatch's sum, over time and over gateways, is what was counted; nothing new is no line."""
    counted, publisher, said = embedded()
    counted.granted("eu-west-1", "default", 3)
    publisher.publish()
    counted.granted("eu-west-1", "default", 2)
    publisher.publish()
    publisher.publish()
    assert [3.0, 2.0] == [line["airbridge_claims_total"] for line in said]
    assert {"pool": "default", "region": "eu-west-1"}.items() <= said[0].items()
    assert 1767323045000 == said[0]["_aws"]["Timestamp"]


def test_a_histogram_tells_the_bounds_that_its_new_values_fell_under() -> None:
    """Percentiles are taken of these; once told, a value is not told again."""
    counted, publisher, said = embedded()
    for delay in (0.01, 90.0, 9_999.0):
        counted.reported("eu-west-1", delay)
    publisher.publish()
    counted.reported("eu-west-1", 0.2)
    publisher.publish()
    assert [[0.05, 300.0, 3600.0], [0.25]] == [line["airbridge_report_delay_seconds"] for line in said]


def test_a_long_array_is_shortened_and_keeps_its_percentiles() -> None:
    """CloudWatch takes a hundred values of a metric in a line: each bucket has its share of them."""
    values = representatives({0.1: 900.0, 1.0: 960.0, 10.0: 1000.0, INFINITE: 1000.0})
    assert LONGEST_ARRAY == len(values)
    assert [90, 6, 4] == [values.count(bound) for bound in (0.1, 1.0, 10.0)]


def test_nothing_new_is_no_value() -> None:
    """A histogram without a new value is left out."""
    assert [] == representatives({0.1: 0.0, INFINITE: 0.0})


def test_a_metric_is_known_by_the_dimensions_that_its_alarms_look_at() -> None:
    """Requests also by status alone: that is how GatewayFails sees them, whatever the endpoint."""
    counted, publisher, said = embedded()
    counted.answered("claim", 500, 0.1)
    counted.answered("exchange", 500, 0.1)
    publisher.publish()
    known = extract(said)
    assert [1.0, 1.0] == known["AirBridge", "airbridge_gateway_requests_total", (("status", "500"),)]
    assert [1.0] == known[
        "AirBridge", "airbridge_gateway_requests_total", (("endpoint", "claim"), ("status", "500"))
    ]


@pytest.mark.parametrize("alarm", DEFINED["alarms"], ids=lambda alarm: alarm["name"])
def test_an_alarm_looks_at_a_metric_that_is_published_and_at_dimensions_that_it_has(
    alarm: dict[str, Any],
) -> None:
    """A gateway's by a set of dimensions that it is published under; the schedulers' signal by Region and Pool."""
    dimensions = {tuple(sorted(series)) for series in alarm["series"]}
    assert len(dimensions) == 1
    if alarm["metric"] in SIGNALS:
        assert {("Pool", "Region")} == dimensions
    elif alarm["namespace"] == NAMESPACE:
        published = {tuple(sorted(each)) for each in DEFINED["published"][alarm["metric"]]}
        assert dimensions <= published
    else:
        assert alarm["namespace"].startswith("AWS/")
    assert alarm["period_seconds"] * alarm["periods"] <= 24 * 3600


def test_the_dashboard_draws_what_is_published() -> None:
    """Each search names a published metric and one of its sets of dimensions; nothing of the workers' own is drawn."""
    for panel in DEFINED["panels"]:
        for line in panel["lines"]:
            if "expression" not in line:
                assert line["namespace"].startswith("AWS/") or line["metric"] in SIGNALS
                continue
            found = re.fullmatch(r"SEARCH\('\{AirBridge,([a-z,]+)\} MetricName=\"(\w+)\"', '\w+', 60\)", line["expression"])  # fmt: skip
            assert found, line
            assert found[1].split(",") in DEFINED["published"][found[2]]


def test_an_alarm_is_made_for_what_it_can_be_told_apart_by() -> None:
    """One for the control plane cannot say which region; one for a pool needs both names."""
    for alert in ALERTS:
        placeholders = {"region", "pool"} & {*alert.dimensions}
        expected = {Scope.POOL: {"region", "pool"}, Scope.REGION: {"region"}, Scope.CONTROL_PLANE: set()}
        assert expected[alert.scope] == placeholders, alert.name
    assert len({alarm.name for alarm in (*ALERTS, *AWS_ALARMS)}) == len(ALERTS) + len(AWS_ALARMS)
