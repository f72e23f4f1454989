"""What `make infra-alarms` expects to ring, and by which values. That it does is LocalStack's to show."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.infra.conftest import Stacks

from airbridge.infra import ringing

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_all_alarms_of_the_troubled_region_must_ring_and_elsewhere_those_on_silence(local: Stacks) -> None:
    """Seven for the pool in trouble; of the other, the one that takes no value for a bad one."""
    alarms = list(ringing.gauges(local["control-plane"]).values())
    wanted = ringing.expected(alarms, "eu-west-1")
    elsewhere = {name for name in wanted if "-eu-west-1-" not in name}
    assert {"airbridge-local-us-east-1-default-WorkWaitsTooLong"} == elsewhere
    assert 7 == len(wanted - elsewhere)


def test_each_value_is_beyond_its_threshold_for_as_long_as_the_alarm_asks(local: Stacks) -> None:
    """On the wrong side, once a minute."""
    alarms = ringing.gauges(local["control-plane"])
    (ending,) = [
        one for one in alarms.values() if one["alarm_name"].endswith("eu-west-1-default-CertificateEnding")
    ]
    values = list(ringing.wrong_values([ending], NOW))
    assert ending["evaluation_periods"] < len(values)
    assert {ending["threshold"] - 1} == {value["Value"] for value in values}
    assert len(values) == len({value["Timestamp"] for value in values})
