"""`make infra-alarms`: the alarms that should fire do, and no others. On LocalStack, which evaluates them.

    python -m airbridge.infra.tools.alarm_check local

Every gauge that an alarm looks at is published for one pool of the environment, beyond its threshold, for as many minutes as the
alarm requires; the other pools publish nothing. Then the synthesised stack's own alarms are made with Terraform. Those of the first
pool must fire, and of the others those for which missing data is breaching. LocalStack evaluates neither sums of series nor percentiles.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3

from airbridge.infra.exceptions import EmulatorError, InfraError
from airbridge.infra.tools import localstack
from airbridge.infra.tools.localstack import LocalStack

SECONDS = 150.0
_KEYS = {"AWS_ACCESS_KEY_ID": "123456789012", "AWS_SECRET_ACCESS_KEY": "test"}


def gauges(stack: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stack's alarms on gauges of pools, without what refers to other resources, by their names in Terraform."""
    alarms = stack["resource"]["aws_cloudwatch_metric_alarm"]
    return {
        name: {key: value for key, value in alarm.items() if key not in {"//", "alarm_actions", "ok_actions"}}
        for name, alarm in alarms.items()
        if "pool" in alarm.get("dimensions", {})
    }


def wrong_values(alarms: Sequence[dict[str, Any]], now: datetime) -> Iterator[dict[str, Any]]:
    """Values that make each alarm fire: one a minute, beyond its threshold."""
    for alarm in alarms:
        beyond = 1 if alarm["comparison_operator"] == "GreaterThanThreshold" else -1
        for minute in range(alarm["evaluation_periods"] + 1):
            yield {
                "MetricName": alarm["metric_name"],
                "Dimensions": [{"Name": name, "Value": value} for name, value in alarm["dimensions"].items()],
                "Timestamp": now - timedelta(minutes=minute),
                "Value": alarm["threshold"] + beyond,
            }


def expected(alarms: Sequence[dict[str, Any]], troubled: str) -> set[str]:
    """Return the names of the alarms that must fire: all of the troubled region's, and those of others for which missing data is breaching."""
    return {
        alarm["alarm_name"]
        for alarm in alarms
        if alarm["dimensions"]["region"] == troubled or alarm["treat_missing_data"] == "breaching"
    }


def ring(local: LocalStack, synthesised: Path) -> set[str]:
    """Return the names of the alarms that fire. Raises EmulatorError, with both lists, if others were expected."""
    stack = json.loads((synthesised / "control-plane" / "cdk.tf.json").read_text())
    alarms = gauges(stack)
    made = list(alarms.values())
    region = stack["provider"]["aws"][0]["region"]
    troubled = min(alarm["dimensions"]["region"] for alarm in made)
    shutil.rmtree(local.directory, ignore_errors=True)
    directory = local.directory / "alarms"
    directory.mkdir(parents=True)
    part = {key: stack[key] for key in ("provider",)} | {
        "terraform": {"required_providers": stack["terraform"]["required_providers"]},
        "resource": {"aws_cloudwatch_metric_alarm": alarms},
    }
    (directory / "main.tf.json").write_text(json.dumps(part, indent=1))
    variables = {**_KEYS, "AWS_ENDPOINT_URL": local.endpoint_url, "CHECKPOINT_DISABLE": "1"}
    with local.running():
        client = boto3.client(
            "cloudwatch",
            region_name=region,
            endpoint_url=local.endpoint_url,
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        ill = [alarm for alarm in made if alarm["dimensions"]["region"] == troubled]
        for value in wrong_values(ill, datetime.now(UTC)):
            client.put_metric_data(Namespace=ill[0]["namespace"], MetricData=[value])
        localstack.terraform(directory, variables, "init", "-input=false", "-no-color")
        localstack.terraform(directory, variables, "apply", "-input=false", "-no-color", "-auto-approve")
        return _wait(client, expected(made, troubled))


def _wait(client: Any, wanted: set[str]) -> set[str]:
    deadline = time.monotonic() + SECONDS
    while True:
        alarms = client.describe_alarms()["MetricAlarms"]
        ringing = {one["AlarmName"] for one in alarms if one["StateValue"] == "ALARM"}
        unknown = [one["AlarmName"] for one in alarms if one["StateValue"] == "INSUFFICIENT_DATA"]
        if ringing == wanted and not unknown:
            return ringing
        if time.monotonic() > deadline:
            raise EmulatorError(
                f"do not ring: {sorted(wanted - ringing)}; ring without cause: {sorted(ringing - wanted)}; not evaluated: {unknown}"
            )
        time.sleep(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the firing alarms; return 0 if they are the expected ones."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.alarm_check", description="Try the alarms on LocalStack."
    )
    parser.add_argument("environment")
    parser.add_argument("--python", type=Path, default=Path(".venv-localstack/bin/python"))
    parser.add_argument("--port", type=int, default=5710)
    options = parser.parse_args(arguments)
    local = LocalStack(options.python.absolute(), Path(".localstack-alarms"), options.port)
    try:
        ringing = ring(local, Path("cdktf.out") / options.environment / "stacks")
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{name}\n" for name in sorted(ringing)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
