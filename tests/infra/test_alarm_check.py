"""The alarms that `make infra-alarms` expects to ring, and the values that it sends. That they ring is proved on LocalStack."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.infra.conftest import Stacks

from airbridge.infra.tools import alarm_check

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_silenced_region_raises_expected_alarms(local: Stacks) -> None:
    """A silenced region raises seven alarms of its pool, and of the other pool the one that treats missing data as breaching."""
    alarms = list(alarm_check.gauges(local["control-plane"]).values())
    wanted = alarm_check.expected(alarms, "eu-west-1")
    elsewhere = {name for name in wanted if "-eu-west-1-" not in name}
    assert {"airbridge-local-us-east-1-default-WorkWaitsTooLong"} == elsewhere
    assert 7 == len(wanted - elsewhere)


def test_values_breach_alarm_thresholds(local: Stacks) -> None:
    """Each value is beyond its threshold, once a minute for the alarm's evaluation periods."""
    alarms = alarm_check.gauges(local["control-plane"])
    (ending,) = [
        one for one in alarms.values() if one["alarm_name"].endswith("eu-west-1-default-CertificateEnding")
    ]
    values = list(alarm_check.wrong_values([ending], NOW))
    assert ending["evaluation_periods"] < len(values)
    assert {ending["threshold"] - 1} == {value["Value"] for value in values}
    assert len(values) == len({value["Timestamp"] for value in values})
