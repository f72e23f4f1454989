"""Generator of dashboards and alarms: Grafana, Prometheus rules, the stacks' CloudWatch definition, and docs/reference/metrics.md.

``python -m airbridge.control_plane.observability.generate .`` writes them; a test checks that the files are up to date
and that every expression uses existing metrics.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airbridge.control_plane.observability import cloudwatch
from airbridge.control_plane.observability.alarms import ALERTS, Alert
from airbridge.control_plane.observability.panels import PANELS, Panel
from airbridge.core import metrics
from airbridge.core.metrics import Kind


def used(expression: str) -> set[str]:
    """Return the names of the metrics in a PromQL expression."""
    found = set(re.findall(r"\bairbridge_[a-z_]+", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def table() -> str:
    """Return the table of docs/reference/metrics.md."""
    lines = [
        "| metric | kind | unit | labels | exposed by | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in metrics.ALL:
        labels = ", ".join(f"`{label}`" for label in each.labels) or " "
        lines.append(
            f"| `{each.name}` | {each.kind} | {each.unit} | {labels} | {each.source} | {each.meaning} |"
        )
    return "\n".join(lines)


def grafana() -> dict[str, Any]:
    """Return the Grafana dashboard."""
    return {
        "uid": "airbridge",
        "title": "AirBridge",
        "tags": ["airbridge"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [_grafana_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def _grafana_panel(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.metric.meaning,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [{"refId": "A", "expr": panel.expression, "legendFormat": panel.legend}],
    }


def rules() -> dict[str, Any]:
    """Return Prometheus' alerting rules, as JSON, which is valid YAML."""
    return {"groups": [{"name": "airbridge", "rules": [_rule(alert) for alert in ALERTS]}]}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": f"AirBridge{alert.name}",
        "expr": alert.expression,
        # Expressions of counters and histograms cover the last minutes themselves.
        "for": f"{alert.minutes if alert.metric.kind is Kind.GAUGE else 0}m",
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": cloudwatch.runbook(alert.name)},
    }


def files() -> Iterator[tuple[str, str]]:
    """Yield the path and text of every generated file."""
    for name, made in (
        ("docs/observability/grafana.json", grafana()),
        ("docs/observability/prometheus-rules.json", rules()),
        ("infra/src/airbridge/infra/observability.json", cloudwatch.definition()),
    ):
        yield name, json.dumps(made, indent=1) + "\n"


BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"


def with_table(page: str) -> str:
    """Return docs/reference/metrics.md with the current table."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def main(repository: Path) -> None:
    """Write all generated files."""
    for name, text in files():
        path = repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    page = repository / "docs" / "reference" / "metrics.md"
    page.write_text(with_table(page.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
