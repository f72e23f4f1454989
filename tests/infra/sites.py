"""Sites for tests of the infrastructure: valid ones, to be changed."""

from __future__ import annotations

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
