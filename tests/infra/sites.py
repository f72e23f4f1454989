"""Sites for tests of the infrastructure: valid ones, to be changed."""

from __future__ import annotations

import json
import re
from typing import Any

HOME, ABROAD = "us-east-1", "eu-west-1"


def site(name: str = "factory-7", **changes: Any) -> dict[str, Any]:
    """A site behind the gateway."""
    return {
        "name": name,
        "beside": ABROAD,
        "transport": "gateway",
        "data": ["file:///data/press"],
        "pool": [{"slots": 4}],
        **changes,
    }


def brokered(name: str = "depot-3", **changes: Any) -> dict[str, Any]:
    """A site whose workers get credentials from the gateway."""
    direct = {"transport": "direct", "credentials": "brokered", "data": ["gs://measurements"]}
    return site(name, **{**direct, **changes})


#: Two sites as a file has them, in two regions of dev.toml and prod.toml; a pool of the second stores XComs.
TOML = f"""
[[site]]
name = "factory-7"
beside = "{ABROAD}"
transport = "gateway"
networks = ["10.200.0.0/16"]
data = ["file:///data/press", "jdbc:postgresql://plc.factory.example/line"]
log_days = 30

[[site.pool]]
slots = 4
max_absence_days = 90

[[site]]
name = "depot-3"
beside = "{HOME}"
transport = "direct"
credentials = "brokered"
networks = ["10.200.0.0/16", "10.201.0.0/24"]
data = ["gs://measurements"]

[[site.pool]]
name = "default"
slots = 2
slot_memory = "4GiB"

[[site.pool]]
name = "press"
slots = 1
xcom_inline_bytes = 1024
triggers = "home"
"""


_REFERENCE = re.compile(r"\$\{aws_(sqs_queue|s3_bucket|iam_role)\.([A-Za-z0-9_-]+)\.([a-z_]+)\}")


def resolved(stack: dict[str, Any], region: str, account: str) -> dict[str, Any]:
    """Return a stack whose references to queues, buckets and roles are what AWS would give."""
    known = stack["resource"]

    def value(match: re.Match[str]) -> str:
        kind, key, attribute = match.groups()
        if kind == "s3_bucket":
            name = str(known["aws_s3_bucket"][key]["bucket"])
            return f"arn:aws:s3:::{name}" if attribute == "arn" else name
        name = str(known[f"aws_{kind}"][key]["name"])
        if kind == "iam_role":
            return f"arn:aws:iam::{account}:role/{name}" if attribute == "arn" else name
        if attribute in {"url", "id"}:
            return f"https://sqs.{region}.amazonaws.com/{account}/{name}"
        return f"arn:aws:sqs:{region}:{account}:{name}" if attribute == "arn" else name

    found: dict[str, Any] = json.loads(_REFERENCE.sub(value, json.dumps(stack)))
    return found


def policies_of(stack: dict[str, Any], role: str) -> list[dict[str, Any]]:
    """Return the policies of a role, by the role's name in AWS, of a resolved stack."""
    return [
        json.loads(one["policy"])
        for one in stack["resource"].get("aws_iam_role_policy", {}).values()
        if one["role"] == role
    ]
