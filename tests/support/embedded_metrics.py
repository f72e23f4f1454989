"""Metrics that CloudWatch Logs extracts from lines in its embedded metric format, by the published specification."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

Known = dict[tuple[str, str, tuple[tuple[str, str], ...]], list[float]]
"""Values by namespace, metric and dimensions."""

UNITS = {"Seconds", "Bytes", "Count"}


def extract(lines: Iterable[Mapping[str, Any]]) -> Known:
    """Return what becomes known; AssertionError where a line breaks the specification."""
    known: defaultdict[tuple[str, str, tuple[tuple[str, str], ...]], list[float]] = defaultdict(list)
    for line in lines:
        metadata = line["_aws"]
        assert isinstance(metadata["Timestamp"], int), "milliseconds since 1970"
        for directive in metadata["CloudWatchMetrics"]:
            assert 1 <= len(directive["Namespace"]) <= 1024
            assert len(directive["Metrics"]) <= 100
            for dimensions in directive["Dimensions"]:
                assert len(dimensions) <= 30
                where = tuple(sorted((name, line[name]) for name in dimensions))
                assert all(isinstance(value, str) and 1 <= len(value) <= 1024 for _, value in where), where
                for metric in directive["Metrics"]:
                    assert metric["Unit"] in UNITS
                    known[directive["Namespace"], metric["Name"], where] += _numbers(line[metric["Name"]])
    return dict(known)


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, list) else [value]
    assert 1 <= len(values) <= 100
    assert all(isinstance(each, int | float) for each in values)
    return values
