"""Metrics: documented = defined = exposed, names as promtool wants them, and dashboards that draw only what there is."""

from __future__ import annotations

import json
import re
from itertools import product
from pathlib import Path

import pytest
from tests.unit.executor.catalogues import catalogue

from airbridge.control_plane.gateway.background.metrics import DatabaseGauges, Metrics
from airbridge.control_plane.observability import generate
from airbridge.control_plane.observability.alarms import ALERTS, AWS_ALARMS
from airbridge.control_plane.observability.panels import PANELS, Panel
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.read_model.diagnosis.cause import Code
from airbridge.control_plane.read_model.platform import Platform
from airbridge.core import metrics

REPOSITORY = Path(__file__).parents[3]
DOCS = REPOSITORY / "docs"
NAMES = {each.name for each in metrics.ALL}


def test_no_metric_is_defined_twice() -> None:
    """Each name is defined once."""
    assert len(NAMES) == len(metrics.ALL)


@pytest.mark.parametrize("metric", metrics.ALL, ids=lambda metric: metric.name)
def test_names_and_units_are_prometheus_own(metric: metrics.Metric) -> None:
    """promtool's rules, and a unit in the name wherever there is one."""
    assert [] == metrics.problems(metric)


@pytest.mark.parametrize(
    ("name", "kind", "unit"),
    [
        ("airbridge_claims", metrics.Kind.COUNTER, "claims"),
        ("airbridge_delay_ms", metrics.Kind.GAUGE, "milliseconds"),
        ("airbridge_delay", metrics.Kind.GAUGE, "seconds"),
        ("airbridgeDelay_seconds", metrics.Kind.GAUGE, "seconds"),
        ("airbridge_items_total", metrics.Kind.GAUGE, "items"),
        ("airbridge_items_count", metrics.Kind.GAUGE, "items"),
    ],
)
def test_wrong_names_are_found(name: str, kind: metrics.Kind, unit: str) -> None:
    """A name that breaks a rule of promtool is reported."""
    assert metrics.problems(metrics.Metric(name, kind, unit, "Something", metrics.Source.GATEWAY))


def test_the_page_is_what_is_defined() -> None:
    """docs/reference/metrics.md has the table of the definitions; `make dashboards` writes it."""
    page = (DOCS / "reference" / "metrics.md").read_text()
    assert generate.with_table(page) == page
    assert NAMES <= set(re.findall(r"`(airbridge_[a-z_]+)`", page))


@pytest.mark.parametrize(("name", "text"), list(generate.files()), ids=lambda value: value[:30])
def test_generated_files_are_current(name: str, text: str) -> None:
    """Each generated file equals the output of its definition."""
    assert text == (REPOSITORY / name).read_text()
    json.loads(text)


def test_dashboards_use_existing_metrics() -> None:
    """Every expression, panel and alarm is about a defined metric, under labels that it has."""
    for each in (*PANELS, *ALERTS):
        used = generate.used(each.expression)
        assert used
        assert used <= NAMES, each
        labels = {label for metric in metrics.ALL if metric.name in used for label in metric.labels} | {"le"}
        named = re.findall(r"(?:by|without|on) ?\(([a-z_, ]+)\)", each.expression)
        assert {word.strip() for words in named for word in words.split(",")} <= labels, each
        assert set(re.findall(r"[{,]([a-z_]+)=", each.expression)) <= labels, each


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_panel_reads_each_gauge_series(panel: Panel) -> None:
    """The highest or lowest of a gauge is that of one series on all gateways: without a label it would be that of one pool."""
    gauges = {
        each.name: each.labels
        for each in metrics.ALL
        if each.kind is metrics.Kind.GAUGE and each.source is metrics.Source.GATEWAY
    }
    read = [name for name in re.findall(r"\bairbridge_[a-z_]+", panel.expression) if name in gauges]
    grouped = re.findall(r"(?:max|min) by \(([a-z_, ]+)\) \((\w+)\)", panel.expression)
    assert read == [name for _, name in grouped if name in gauges]
    for labels, name in grouped:
        assert tuple(labels.split(", ")) == gauges[name], panel.expression


def test_alarmed_series_begin_at_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every series that an alarm sums up is there before its first value, in which Prometheus would see no increase."""
    monkeypatch.setattr(DatabaseGauges, "collect", lambda _: iter(()))
    platform = Platform(catalogue(), Parity.load(None))
    exposed = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in Metrics(platform, ("claim", "exchange")).families()
        for sample in family.samples
    }
    known = {
        "region": [region.name for region in platform.catalogue.regions],
        "endpoint": ["claim", "exchange", "other"],
        "operation": list(metrics.OPERATIONS),
    }
    counted = [alert for alert in ALERTS if alert.metric.kind is not metrics.Kind.GAUGE]
    assert counted
    for alert in counted:
        name = alert.metric.name + ("_count" if alert.metric.kind is metrics.Kind.HISTOGRAM else "")
        for values in product(*(alert.where.get(label, known.get(label)) for label in alert.metric.labels)):
            series = frozenset(zip(alert.metric.labels, values, strict=True))
            assert exposed.get((name, series)) == 0.0, alert.name


def test_every_alarm_has_a_runbook() -> None:
    """Every alarm has a runbook, and every runbook an alarm."""
    sections = re.findall(r"^## (\w+)$", (DOCS / "how-to" / "runbooks.md").read_text(), re.MULTILINE)
    assert [alarm.name for alarm in (*ALERTS, *AWS_ALARMS)] == sections


def test_every_cause_is_in_the_docs() -> None:
    """docs/how-to/troubleshoot.md has a section for each cause code."""
    page = (DOCS / "how-to" / "troubleshoot.md").read_text()
    assert [] == [code for code in Code if f"`{code}`" not in page]
