"""``airbridge usage``: what it asks the gateway for, and how it prints the answer."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from airbridge.control_plane.cli import app, connection
from airbridge.control_plane.operator_client import Endpoint, OperatorClient

AMOUNT = {
    "items": 3,
    "slot_seconds": 7200.0,
    "cpu_seconds": 1800.0,
    "peak_memory_bytes": 2**30,
    "xcom_bytes": 3 * 2**20,
    "log_bytes": 500,
    "code_bytes": 0,
}
USAGE = {
    "since": "2026-01-01T00:00:00+00:00",
    "until": "2026-01-02T00:00:00+00:00",
    "by": ["team", "region"],
    "lines": [
        {"team": "finance", "region": "eu-west-1", **AMOUNT, "share": 0.75},
        {"team": 'a "b", c', "region": "us-east-1", **AMOUNT, "slot_seconds": 2400.0, "share": 0.25},
    ],
    "total": {**AMOUNT, "items": 6, "slot_seconds": 9600.0},
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[httpx.Request]:
    found: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        found.append(request)
        return httpx.Response(200, json=USAGE)

    monkeypatch.setattr(
        connection,
        "client",
        lambda *_: OperatorClient(Endpoint("https://g.test", None, "t"), httpx.MockTransport(answer)),
    )
    return found


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app.build(), ["usage", "--url", "https://g.test", *words])


def test_period_and_groups_are_asked_for(asked: list[httpx.Request]) -> None:
    """A span is one before now, a time is sent as it is, groups are sent once each."""
    assert invoke("--since", "7d", "--by", "team, region,team").exit_code == 0
    query = dict(asked[0].url.params)
    assert (asked[0].url.path, query["by"]) == ("/operator/v1/usage", "team,region")
    week = datetime.now(UTC) - timedelta(days=7)
    assert abs(datetime.fromisoformat(query["since"]) - week) < timedelta(minutes=1)
    assert "until" not in query
    invoke("--since", "2026-01-01T00:00:00Z", "--until", "2026-02-01T00:00:00+01:00")
    query = dict(asked[1].url.params)
    assert (query["since"], query["until"]) == ("2026-01-01T00:00:00+00:00", "2026-02-01T00:00:00+01:00")


def test_table_has_a_total(asked: list[httpx.Request]) -> None:
    """The table has a line a group, with units for people, and the total."""
    printed = invoke("--by", "team,region").stdout
    assert "2026-01-01 00:00:00 to 2026-01-02 00:00:00 UTC" in printed
    [finance] = [line.split() for line in printed.splitlines() if line.startswith("finance")]
    assert finance == [
        "finance",
        "eu-west-1",
        "3",
        "2.000",
        "75.0%",
        "0.500",
        "1024",
        "MiB",
        "3",
        "MiB",
        "500",
        "B",
    ]
    assert any(line.split()[:3] == ["total", "6", "2.667"] for line in printed.splitlines())
    assert asked


def test_csv_and_json_have_the_units_of_the_ledger(asked: list[httpx.Request]) -> None:
    """CSV has a header and the same numbers as JSON, quoted where it must be."""
    rows = list(csv.DictReader(io.StringIO(invoke("--by", "team,region", "--csv").stdout)))
    assert [row["team"] for row in rows] == ["finance", 'a "b", c']
    assert [float(row["slot_seconds"]) for row in rows] == [7200.0, 2400.0]
    assert [row["xcom_bytes"] for row in rows] == ["3145728"] * 2
    assert json.loads(invoke("--json").stdout) == USAGE
    assert asked


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--by", "owner"), "'owner' is none of team, dag, region, pool"),
        (("--since", "yesterday"), "'yesterday' is no time; write 90m, 24h, 7d or"),
        (("--since", "2026-01-01T00:00:00"), "has no offset; end it in Z for UTC"),
        (("--since", "99999999d"), "is no time"),
        (("--since", "999999d"), "is before the year 1"),
        (("--since", "1h", "--until", "2h"), "is not after --since"),
        (("--csv", "--json"), "choose one of --csv and --json"),
    ],
)
def test_wrong_usage_is_named(asked: list[httpx.Request], words: tuple[str, ...], message: str) -> None:
    """Wrong options exit with 2, and the message says what would be right; the gateway is not asked."""
    result = invoke(*words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("\u2502", " ").split())
    assert not asked
