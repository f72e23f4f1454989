"""CloudWatch: the metrics that a gateway's log publishes there, and alarms that use nothing else."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.embedded_metrics import extract

from airbridge.control_plane.gateway.background.metrics import Metrics
from airbridge.control_plane.observability import cloudwatch
from airbridge.control_plane.observability.alarms import ALERTS, AWS_ALARMS, NAMESPACE, SIGNALS, Scope
from airbridge.control_plane.observability.cloudwatch_emf import LONGEST_ARRAY, CloudWatchEmf, representatives

DEFINED = cloudwatch.definition()
INFINITE = float("inf")


def embedded() -> tuple[Metrics, CloudWatchEmf, list[dict[str, Any]]]:
    """Return a gateway's counters without a database, their publisher, and the lines that it has written."""
    counted, lines = Metrics(), []
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return (
        counted,
        CloudWatchEmf(counted, "AirBridge", lambda: now, lambda event, **line: lines.append(line)),
        lines,
    )


def test_counter_publishes_increase() -> None:
    """A line has the increase since the last one, so that CloudWatch's sum over time and gateways is the total; no increase, no line."""
    counted, publisher, lines = embedded()
    counted.granted("eu-west-1", "default", 3)
    publisher.publish()
    counted.granted("eu-west-1", "default", 2)
    publisher.publish()
    publisher.publish()
    assert [3.0, 2.0] == [line["airbridge_claims_total"] for line in lines]
    assert {"pool": "default", "region": "eu-west-1"}.items() <= lines[0].items()
    assert 1767323045000 == lines[0]["_aws"]["Timestamp"]


def test_histogram_publishes_bucket_bounds() -> None:
    """Percentiles are computed from these bounds; each value is published once."""
    counted, publisher, lines = embedded()
    for delay in (0.01, 90.0, 9_999.0):
        counted.reported("eu-west-1", delay)
    publisher.publish()
    counted.reported("eu-west-1", 0.2)
    publisher.publish()
    assert [[0.05, 300.0, 3600.0], [0.25]] == [line["airbridge_report_delay_seconds"] for line in lines]


def test_long_array_keeps_percentiles() -> None:
    """CloudWatch takes a hundred values of a metric in a line: each bucket has its share of them."""
    values = representatives({0.1: 900.0, 1.0: 960.0, 10.0: 1000.0, INFINITE: 1000.0})
    assert LONGEST_ARRAY == len(values)
    assert [90, 6, 4] == [values.count(bound) for bound in (0.1, 1.0, 10.0)]


def test_nothing_new_is_no_value() -> None:
    """A histogram without a new value is left out."""
    assert [] == representatives({0.1: 0.0, INFINITE: 0.0})


def test_metric_has_alarm_dimensions() -> None:
    """Metrics have the alarms' dimensions: requests also by status alone, because GatewayFails covers every endpoint."""
    counted, publisher, lines = embedded()
    counted.answered("claim", 500, 0.1)
    counted.answered("exchange", 500, 0.1)
    publisher.publish()
    known = extract(lines)
    assert [1.0, 1.0] == known["AirBridge", "airbridge_gateway_requests_total", (("status", "500"),)]
    assert [1.0] == known[
        "AirBridge", "airbridge_gateway_requests_total", (("endpoint", "claim"), ("status", "500"))
    ]


@pytest.mark.parametrize("alarm", DEFINED["alarms"], ids=lambda alarm: alarm["name"])
def test_alarms_use_published_dimensions(
    alarm: dict[str, Any],
) -> None:
    """A gateway's alarm uses a set of dimensions that its metric has; one of the schedulers' signal uses Region and Pool."""
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


def test_alarm_scope_matches_dimensions() -> None:
    """An alarm for a pool has both names as dimensions, one for a region has its name, and one for the control plane has none."""
    for alert in ALERTS:
        placeholders = {"region", "pool"} & {*alert.dimensions}
        expected = {Scope.POOL: {"region", "pool"}, Scope.REGION: {"region"}, Scope.CONTROL_PLANE: set()}
        assert expected[alert.scope] == placeholders, alert.name
    assert len({alarm.name for alarm in (*ALERTS, *AWS_ALARMS)}) == len(ALERTS) + len(AWS_ALARMS)
